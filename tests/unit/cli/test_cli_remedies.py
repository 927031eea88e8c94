"""Every refusal says what to do, whoever raises it: a class of errors has what can always be done about it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import pytest

import harness
from harness.cli import print_error
from harness.cli.engine import EngineFailedError
from harness.cli.merge_remedies import REMEDIES, remedy_of
from harness.errors import ConfigurationError, HarnessError, UnknownNameError
from harness.merge.errors import MergeError

HOST = ("cli", "envs", "execution", "matrix", "report", "bench")


def below(cls: type) -> Iterator[type]:
    for child in cls.__subclasses__():
        yield child
        yield from below(child)


def errors_of_the_host() -> list[type[HarnessError]]:
    """Return every class of errors that the command line prints, all of the host's modules imported."""
    for name in HOST:
        package = importlib.import_module(f"{harness.__name__}.{name}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            # Programs run in an environment of their own, and an executor may need an extra; neither makes a class that
            # the command line prints.
            if ".programs" not in module.name and module.name != "harness.execution.executors.ray":
                importlib.import_module(module.name)
    return sorted({HarnessError, *below(HarnessError)}, key=lambda cls: cls.__name__)


def test_every_class_of_errors_has_a_remedy() -> None:
    found = errors_of_the_host()

    assert len(found) > 10
    for cls in found:
        assert cls.usual_remedy.endswith("."), cls
        if cls not in {HarnessError, ConfigurationError} and cls.exit_code != ConfigurationError.exit_code:
            assert cls.usual_remedy != HarnessError.usual_remedy, f"{cls} says what is true of no case of it"


def test_every_condition_that_ends_a_merge_has_a_remedy() -> None:
    classes = [cls for cls in below(MergeError) if cls.__module__ == MergeError.__module__]

    assert {cls.__name__ for cls in classes} == set(REMEDIES)
    for cls in classes:
        error = cls("what happened")
        assert isinstance(error, MergeError)
        assert remedy_of(error.to_json()) == REMEDIES[cls.__name__]
        own = cls("what happened", "Do this.")
        assert isinstance(own, MergeError)
        assert remedy_of(own.to_json()) == "Do this.", "the engine's own words come first"


def test_an_error_is_printed_in_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (
        ConfigurationError("--x: no."),
        UnknownNameError("model", "a", ["b"]),
        EngineFailedError("it ended.", remedy_of({"class": "CorruptFileError", "remedy": None}), 5),
    ):
        print_error(error)
        lines = capsys.readouterr().err.splitlines()
        assert [line.partition(":")[0] for line in lines] == ["error", "what to do"]


def test_what_is_given_is_said_in_place_of_what_is_usual() -> None:
    assert ConfigurationError("x", remedy="Do this.").remedy == "Do this."
    assert ConfigurationError("x").remedy == ConfigurationError.usual_remedy
