"""Whether pins are yanked is a note: indexes that are out of reach are asked once, and what they said is remembered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.envs import versions
from harness.envs.uv_command import Unresolvable
from harness.errors import EnvironmentFailedError
from harness.matrix.cell import Stack

STACKS = [Stack(transformers=f"5.{minor}.0", peft="0.19.1", trl="1.4.0") for minor in range(3)]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Return what indexes are asked, in a cache of its own; they say that transformers 5.1.0 is yanked."""
    seen: list[Sequence[str]] = []

    def yanked(_uv: object, pins: Sequence[str], _interpreter: object) -> dict[str, str | None]:
        seen.append(pins)
        return {pin: "it is yanked" if pin == "transformers==5.1.0" else None for pin in pins}

    uv = SimpleNamespace(indexes=SimpleNamespace(digest="d" * 24))
    monkeypatch.setattr(versions, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(versions, "find_uv", lambda *_args: uv)
    monkeypatch.setattr(versions, "find_interpreter", lambda *_args: None)
    monkeypatch.setattr(versions, "yanked", yanked)
    return seen


def test_what_was_said_is_remembered(asked: list[Sequence[str]]) -> None:
    assert versions.yanked_pins(STACKS) == ("it is yanked",)
    assert len(asked) == 3

    assert versions.yanked_pins(STACKS) == ("it is yanked",)
    assert len(asked) == 3, "nobody is asked again"


@pytest.mark.parametrize(("error", "times"), [(EnvironmentFailedError("no network"), 1), (Unresolvable("no such"), 3)])
def test_indexes_that_are_out_of_reach_are_asked_once(
    asked: list[Sequence[str]], monkeypatch: pytest.MonkeyPatch, error: Exception, times: int
) -> None:
    def failing(_uv: object, pins: Sequence[str], _interpreter: object) -> dict[str, str | None]:
        asked.append(pins)
        raise error

    monkeypatch.setattr(versions, "yanked", failing)

    assert versions.yanked_pins(STACKS) == ()
    assert len(asked) == times
