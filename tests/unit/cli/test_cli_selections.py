"""The selections of a profile are expanded where it names some, and what should be known is said."""

from __future__ import annotations

import importlib
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli import app, selections
from harness.cli.setup import load_setup
from harness.envs import Prepared
from harness.matrix.cell import Stack
from harness.matrix.releases import Offer, Release

ROOT = Path(__file__).resolve().parents[3]
SETUP = load_setup(ROOT / "matrix.toml")


class Index:
    """An index with one release of each, of which transformers' is new, and a note of its own."""

    notes = ("trl: the indexes cannot be asked; taken from what they said 3 days ago",)

    def offer(self, package: str) -> Offer:
        """Return the one release."""
        version = {"transformers": "5.24.0", "peft": "0.21.2", "trl": "1.16.0"}[package]
        uploaded = datetime.now(UTC) - timedelta(days=1 if package == "transformers" else 90, hours=1)
        release = Release(version=version, uploaded=uploaded)
        return Offer(package=package, releases=(release,), asked=datetime.now(UTC))

    def today(self) -> date:
        """Return a day."""
        return date(2026, 11, 28)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Which Pythons an index was opened for."""
    opened: list[object] = []

    def open_index(*, python_version: str | None, log: object) -> Any:
        opened.append(python_version)
        assert callable(log)
        log("$ uv pip compile -")
        log("asking the package indexes")
        return Index()

    monkeypatch.setattr(selections, "open_chooser", open_index)
    return opened


def test_a_profile_without_selections_asks_nothing(asked: list[object]) -> None:
    said: list[str] = []

    assert selections.expand_selections(SETUP, "default", say=said.append) == {}
    assert (said, asked) == ([], [])


def test_new_releases_and_notes_are_said_once(asked: list[object]) -> None:
    said: list[str] = []
    found = selections.expand_selections(SETUP, "newest", say=said.append)

    assert list(found) == ["newest", "fresh"]
    assert said == [
        "asking the package indexes",
        "transformers 5.24.0 is new: uploaded 1 day ago.",
        "trl: the indexes cannot be asked; taken from what they said 3 days ago",
    ]
    assert asked == [None]


def test_an_interpreter_of_the_users_takes_the_place_of_all(asked: list[object]) -> None:
    held = Stack(transformers="5.5.0", peft="0.19.1", trl="0.25.1")
    found = selections.expand_selections(SETUP, "newest", say=lambda _: None, installed=held)

    assert [generated.stacks for generated in found.values()] == [(held,), (held,)]
    assert asked == []


@pytest.mark.usefixtures("asked")
def test_the_plan_shows_what_was_found_and_what_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = importlib.import_module("harness.cli.plan")  # the package calls the function of that name the same

    def prepared(stacks: Any, *, device: str) -> Prepared:
        assert device == "cpu"
        return Prepared(there=frozenset([next(iter(stacks)).key]), identities={}, seconds_each=5.0)

    monkeypatch.setattr(module, "prepared_environments", prepared)
    folder = tmp_path / "cells" / "qwen3_moe"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text(
        '{"cell_id": "qwen3_moe/lora@tf5.24.0-peft0.21.2-trl1.16.0", "timings": {"cell": 20.0}}', encoding="utf-8"
    )
    options = ["--profile", "newest", "--select", "qwen3_moe/*", "--select", "glm4_moe/*", "--results", str(tmp_path)]
    done = CliRunner().invoke(app, ["plan", *options])

    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    row = next(line for line in lines if "qwen3_moe/lora@tf5.24.0-peft0.21.2-trl1.16.0 " in line)
    assert "there" in row
    assert "20 s" in row
    assert "selections.newest: transformers latest-minors:2, peft latest, trl latest" in row
    assert "4 cells on 2 stacks; 1 environment to be made, 1 there" in lines[-2]
    assert "1 by their own last time, 0 by the same cell on other stacks, 3 unknown and not counted" in lines[-1]
