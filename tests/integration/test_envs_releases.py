"""Releases, sources and eras through the real uv: from an index of a few files that is made here."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from datetime import date
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_envs import make_wheel

from harness.envs import IndexChooser, open_chooser
from harness.envs.environment import ensure_requirements
from harness.envs.versions import yanked
from harness.errors import ConfigurationError, VersionNotFoundError
from harness.matrix.sources import SourceSelector

pytestmark = pytest.mark.integration

RELEASES = {
    "peft": {
        "0.14.0": "2025-01-01",
        "0.15.0": "2025-03-19",
        "0.16.0": "2025-07-03",
        "0.17.0": "2025-08-01",
        "0.18.0rc1": "2025-08-20",
        "0.18.0": "2025-09-01",
    },
    "helper": {"1.0": "2025-02-01", "2.0": "2025-12-01"},
}
"""What there is, and when it was uploaded."""
YANKED = {"0.16.0": "broken"}
PYTHONS = {"0.18.0": ">=9"}
"""What asks for a Python that nobody has."""


class Simple(BaseHTTPRequestHandler):
    """The JSON simple API (PEP 691, upload times by PEP 700) of a folder of wheels."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.folder = folder
        super().__init__(*arguments)  # type: ignore[arg-type]  # what socketserver gives

    def do_GET(self) -> None:
        """Answer with a project's page, or a wheel."""
        name = self.path.strip("/").split("/")[-1]
        if name.endswith(".whl"):
            self._answer((self.folder / name).read_bytes(), "application/octet-stream")
        elif name in RELEASES:
            files = [
                {
                    "filename": f"{name}-{version}-py3-none-any.whl",
                    "url": f"/files/{name}-{version}-py3-none-any.whl",
                    "hashes": {},
                    "yanked": YANKED.get(version, False),
                    "requires-python": PYTHONS.get(version),
                    "upload-time": f"{day}T10:00:00Z",
                }
                for version, day in RELEASES[name].items()
            ]
            page = {"meta": {"api-version": "1.1"}, "name": name, "files": files, "versions": list(RELEASES[name])}
            self._answer(json.dumps(page).encode(), "application/vnd.pypi.simple.v1+json")
        else:
            self.send_error(404)

    def _answer(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def chooser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[IndexChooser]:
    """A chooser that knows this index alone, and an empty cache."""
    folder = tmp_path / "files"
    for name, releases in RELEASES.items():
        for version in releases:
            make_wheel(folder, name, version, ("helper",) if name == "peft" else ())
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_")) or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Simple, folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    variables = {
        "MOE_LORA_HARNESS_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path),
        "UV_NO_CONFIG": "1", "UV_CACHE_DIR": str(tmp_path / "uv"), "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": f"http://127.0.0.1:{server.server_port}/simple",
    }  # fmt: skip
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    try:
        yield open_chooser()
    finally:
        server.shutdown()
        server.server_close()


def test_the_releases_are_those_that_can_be_installed_here(chooser: IndexChooser) -> None:
    offer = chooser.offer("peft")

    assert [(it.version, str(it.uploaded)[:10]) for it in offer.releases] == [
        ("0.18.0rc1", "2025-08-20"),
        ("0.17.0", "2025-08-01"),
        ("0.15.0", "2025-03-19"),
    ]
    assert chooser.newest("peft", pre=False) == "0.17.0"
    assert chooser.newest("peft", pre=True) == "0.18.0rc1"
    assert chooser.oldest("peft", pre=False) == "0.15.0"
    assert chooser.notes == []
    with pytest.raises(VersionNotFoundError):
        chooser.offer("trl")


def test_without_the_index_what_it_said_is_used_and_its_age_said(
    chooser: IndexChooser, monkeypatch: pytest.MonkeyPatch
) -> None:
    releases = chooser.offer("peft").releases
    monkeypatch.setattr("harness.envs.release_list.FRESH_FOR", type(chooser.releases.now() - chooser.releases.now())(0))
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", os.environ["UV_CACHE_DIR"] + "-empty")
    offline = open_chooser()

    assert offline.offer("peft").releases == releases
    (note,) = offline.notes
    assert note.startswith("peft: the indexes cannot be asked")
    assert note.endswith("taken from what they said less than a minute ago")


def test_a_yanked_pin_is_installed_and_said(chooser: IndexChooser) -> None:
    uv, python = chooser.releases.uv, chooser.releases.interpreter

    assert chooser.choose(["peft==0.16.0"], pre=())["peft"] == "0.16.0"
    assert yanked(uv, ["helper==1.0", "peft==0.16"], python) == {
        "helper==1.0": None,
        "peft==0.16": "peft 0.16 is yanked (broken); it is installed because it is pinned exactly.",
    }


def test_the_resolver_chooses_and_says_why_it_cannot(chooser: IndexChooser) -> None:
    assert chooser.choose(["peft>=0.15"], pre=()) == {"helper": "2.0", "peft": "0.17.0"}
    assert chooser.choose(["peft>=0.15"], pre=["peft"])["peft"] == "0.18.0rc1"
    assert chooser.choose(["peft==0.18.0rc1"], pre=())["peft"] == "0.18.0rc1"
    with pytest.raises(ConfigurationError, match=r"No versions go together with peft<0\.16, peft>=0\.17\. uv says"):
        chooser.choose(["peft<0.16", "peft>=0.17"], pre=())
    with pytest.raises(ConfigurationError, match=r"No configured package index offers peft>=0\.19\.") as caught:
        chooser.choose(["peft>=0.19"], pre=())
    assert "0.17.0 is the newest: give --peft 0.17.0." in str(caught.value.remedy)


@pytest.mark.usefixtures("chooser")
def test_an_era_takes_nothing_that_is_newer() -> None:
    marks, then = ("era-14 2025-08-15",), date(2025, 8, 15)

    assert ensure_requirements(["peft==0.17.0"], label="now").versions == {"helper": "2.0", "peft": "0.17.0"}
    made = ensure_requirements(["peft==0.17.0"], label="then", marks=marks, before=then)
    assert made.versions == {"helper": "1.0", "peft": "0.17.0"}


def test_a_wheel_is_installed_beside_what_it_needs(chooser: IndexChooser, tmp_path: Path) -> None:
    make_wheel(tmp_path / "own", "peft", "0.99.dev0", ("helper<2",))
    wheel = tmp_path / "own" / "peft-0.99.dev0-py3-none-any.whl"
    version, source = chooser.build("peft", SourceSelector(kind="wheel", text=str(wheel)))
    made = ensure_requirements(
        [f"peft @ {source.location}"], label="own", sources={"peft": source}, marks=(f"peft wheel {source.digest}",)
    )

    assert version == "0.99.dev0"
    assert made.versions == {"helper": "1.0", "peft": "0.99.dev0"}
    (lock,) = (tmp_path / "cache" / "locks").glob("*.txt")
    assert "peft" not in lock.read_text(encoding="utf-8")
