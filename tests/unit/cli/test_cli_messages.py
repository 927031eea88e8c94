"""What a mistyped value is answered with: the option, what is known instead, and nothing before it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app, engine
from harness.errors import ConfigurationError, UnknownNameError

RUN = ("run", "--model", "qwen3_moe", "--peft", "0.19.1", "--device", "cpu")
MERGE = ("merge", "--base", "base", "--adapter", "adapter")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A directory with a base and an adapter, where nothing may be run."""
    monkeypatch.chdir(tmp_path)
    for name in ("base", "adapter"):
        Path(name).mkdir()

    def started(*_: object) -> None:
        pytest.fail("the engine was started")

    monkeypatch.setattr(engine, "publish_bundle", started)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*RUN, "--dtype", "bf17"), "--dtype: unknown value 'bf17'. Did you mean 'bf16'?"),
        ((*RUN, "--seed", str(2**40)), f"--seed: {2**40}: a seed lies between 0 and {2**32 - 1}."),
        (("plan", "--stack", "nope"), "--stack: unknown stack 'nope'."),
        (("plan", "--stack", "nope*"), "--stack: 'nope*' matches no stack."),
        (MERGE, "--out is needed, unless --dry-run is given."),
        (("merge", "--base", "nope", "--adapter", "adapter", "--out", "x"), "the base directory nope does not exist."),
        ((*MERGE, "--adapter", "./a/b", "--out", "x"), "the adapter directory ./a/b does not exist."),
        (
            ("audit", "--base", "base", "--adapter", "adapter", "--merged", "nope"),
            "the merged checkpoint directory nope does not exist.",
        ),
    ],
)
def test_a_mistake_is_named_by_its_option_before_anything_is_started(words: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(app, words)

    assert isinstance(done.exception, ConfigurationError), done.output
    assert done.exception.message == message
    assert done.exception.exit_code == 2
    assert done.output == ""
    assert done.exception.remedy or not isinstance(done.exception, UnknownNameError)


@pytest.mark.parametrize(("option", "value"), [("--io-layout", "foo"), ("--dtype", "nope"), ("--accumulate", "x")])
def test_a_value_that_is_none_of_a_few_is_told_in_plain_words(option: str, value: str) -> None:
    done = CliRunner().invoke(app, [*MERGE, option, value])
    words = " ".join(done.output.replace("│", " ").split())

    assert done.exit_code == 2
    assert f"'{option}': '{value}' is not one of" in words
    assert "Value error" not in done.output
