"""Hostile text is made safe once, and stays readable."""

from __future__ import annotations

import unicodedata
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.report import figures
from harness.report.text import clean, fold, one_line

ANYTHING = st.text(st.characters(codec=None))  # lone surrogates included


@pytest.mark.parametrize(
    ("dirty", "expected"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b31mred", "red"),
        ("10%\r20%\r\n30%", "10%\n20%\n30%"),
        ("a\tb", "a   b"),
        ("a\u202eb\u200bc\x00d\ud800e\ufffe", "abcde"),
        ("plain é 漢 😀", "plain é 漢 😀"),
    ],
)
def test_clean_takes_out_what_a_terminal_would_obey(dirty: str, expected: str) -> None:
    assert clean(dirty) == expected


@given(ANYTHING)
def test_clean_text_is_stable_encodable_and_legal_xml(text: str) -> None:
    cleaned = clean(text)

    assert clean(cleaned) == cleaned
    assert "\x1b" not in cleaned
    assert all(c == "\n" or unicodedata.category(c) not in {"Cc", "Cf", "Cs"} for c in cleaned)
    assert ET.fromstring(f"<a>{escape(cleaned)}</a>".encode()).text == (cleaned or None)  # noqa: S314 - our own bytes


@given(ANYTHING, st.integers(1, 50))
def test_one_line_is_one_line_and_short(text: str, limit: int) -> None:
    line = one_line(text, limit)

    assert len(line) <= limit
    assert len(line.splitlines()) <= 1


def test_fold_keeps_head_and_tail_and_says_what_is_missing() -> None:
    text = "\n".join(f"line {n}" for n in range(100))

    folded = fold(text, max_lines=9).split("\n")

    assert folded == ["line 0", "line 1", "line 2", "… 91 lines left out …", *(f"line {n}" for n in range(94, 100))]


def test_fold_shortens_a_line_of_a_megabyte() -> None:
    folded = fold("a" * 500_000 + "b" * 500_000, max_chars=300)

    assert folded == "a" * 100 + "\n… 999700 characters left out …\n" + "b" * 200


def test_short_text_is_not_folded() -> None:
    assert fold("  one\ntwo\n\n") == "  one\ntwo"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "\N{EN DASH}"),
        (0.0, "0"),
        (1.2345e-13, "1.2e-13"),
        (-3e-17, "-3.0e-17"),
        (0.23456, "0.23"),
        (0.001, "0.001"),
        (0.000999, "1.0e-03"),
        (5.0, "5"),
        (123.4, "123"),
        (2e7, "2.0e+07"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_kl_has_two_digits_and_is_never_clamped_or_hidden(value: float | None, expected: str) -> None:
    assert figures.kl(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "\N{EN DASH}"),
        (0.04, "0.0 s"),
        (9.96, "10.0 s"),
        (59.4, "59 s"),
        (59.7, "1 min 00 s"),
        (245, "4 min 05 s"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_seconds(value: float | None, expected: str) -> None:
    assert figures.seconds(value) == expected


def test_checks_show_whole_numbers_in_full_and_text_on_one_line() -> None:
    assert figures.number(18432) == "18432"
    assert figures.number("12/\n12") == "12/ 12"
    assert figures.number("") == "\N{EN DASH}"
