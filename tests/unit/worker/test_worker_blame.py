"""What a reason says: the words, what is missing, the call of ours, the place of theirs; nothing is cut at an end."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.worker import blame
from harness.worker.blame import MESSAGE_LIMIT, describe, in_the_middle


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages, and a stage of ours that calls them."""
    packages = tmp_path / "env" / "lib" / "python3.11" / "site-packages"
    own = tmp_path / "code"
    for folder in (packages, own / "harness" / "worker" / "stages"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(blame, "_OWN", own)
    monkeypatch.syspath_prepend(str(packages))
    before = set(sys.modules)
    yield packages
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    importlib.invalidate_caches()


def raised_by(site: Path, call: str) -> BaseException:
    """Run a stage of ours, whose second function makes a call, and return what comes out."""
    source = f"def stage(pkg):\n    return inner(pkg)\n\ndef inner(pkg):\n    return {call}\n"
    file = site.parents[3] / "code" / "harness" / "worker" / "stages" / "generate_it.py"
    file.write_text(source)
    scope: dict[str, Any] = {}
    exec(compile(source, str(file), "exec"), scope)  # noqa: S102 - our own text
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is
        scope["stage"](importlib.import_module("pkg"))
    return caught.value


def test_a_reason_names_the_outermost_call_of_ours_and_the_innermost_of_theirs(site: Path) -> None:
    write(
        site, {"pkg/__init__.py": "from .deep import f\n", "pkg/deep.py": "def f():\n    g()\n\ndef g():\n    [][1]\n"}
    )

    assert describe(raised_by(site, "pkg.f()")) == (
        "IndexError: list index out of range "
        "[called by harness/worker/stages/generate_it.py:2 in stage; raised in pkg/deep.py:5 in g]"
    )


def test_where_torch_raises_the_package_that_asked_it_is_named_too(site: Path) -> None:
    write(site, {"pkg/__init__.py": "import torch.nn\n\ndef f():\n    torch.nn.add()\n"})
    fake = types.ModuleType("torch")
    fake.nn = types.ModuleType("torch.nn")  # type: ignore[attr-defined]
    exec(compile("def add():\n    1 / 0\n", str(site / "torch" / "nn.py"), "exec"), vars(fake.nn))  # type: ignore[attr-defined]  # noqa: S102
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", fake)
        patch.setitem(sys.modules, "torch.nn", fake.nn)  # type: ignore[attr-defined]
        text = describe(raised_by(site, "pkg.f()"))

    assert "asked for by pkg/__init__.py:4 in f; raised in torch/nn.py:2 in add]" in text


def test_what_it_was_raised_from_is_told_with_its_own_place(site: Path) -> None:
    source = (
        "def f():\n    try:\n        {}['k']\n    except KeyError as it:\n        raise RuntimeError('no') from it\n"
    )
    write(site, {"pkg/__init__.py": source})
    text = describe(raised_by(site, "pkg.f()"))

    assert text.startswith("RuntimeError: no, because of KeyError: 'k' [")
    assert text.endswith("raised in pkg/__init__.py:3 in f]")


def test_what_an_error_quotes_of_its_cause_is_said_once(site: Path) -> None:
    """As of a family that cannot be built: with our sizes, with its own defaults, and the library's words in both."""
    source = (
        "class Not(RuntimeError): pass\n\ndef f():\n    try:\n        try:\n            {}['k']\n"
        "        except KeyError as it:\n            raise Not('not built: KeyError: ' + str(it)) from it\n"
        "    except Not as it:\n        raise Not('not even so: ' + str(it)) from it\n"
    )
    write(site, {"pkg/__init__.py": source})
    text = describe(raised_by(site, "pkg.f()"))

    assert text.startswith("Not: not even so: not built: KeyError: 'k' [")
    assert text.endswith("raised in pkg/__init__.py:6 in f]")


def test_a_cause_of_another_kind_is_told_although_its_words_are_in_the_error(site: Path) -> None:
    source = "def f():\n    try:\n        [][3]\n    except IndexError as it:\n        raise ValueError(it) from it\n"
    write(site, {"pkg/__init__.py": source})

    assert describe(raised_by(site, "pkg.f()")).startswith(
        "ValueError: list index out of range, because of IndexError: list index out of range ["
    )


def test_a_name_that_is_none_for_want_of_a_module_is_explained_by_it(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As trl 1.15.0 has it: kernels that need triton are None where it is not, and are used all the same."""
    write(
        site,
        {
            "pkg/__init__.py": "from .utils import f\n",
            "pkg/utils.py": "try:\n    from .kernels import Loss as _Loss\nexcept ImportError:\n    _Loss = None\n\n"
            "def f():\n    _Loss.apply()\n",
            "pkg/kernels.py": "import tritonlike.language\nLoss = 1\n",
        },
    )
    error = raised_by(site, "pkg.f()")
    monkeypatch.setitem(sys.modules, "torch", _torch(cuda="13.0"))
    assert "[it needs tritonlike, which is not installed; called by" in describe(error)
    monkeypatch.setitem(sys.modules, "torch", _torch(cuda=None))
    assert "[it needs tritonlike, which is not installed (torch is a CPU build); called by" in describe(error)


def test_triton_is_said_to_be_missing_on_cpu_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ModuleNotFoundError("No module named 'triton'", name="triton.language")
    monkeypatch.setitem(sys.modules, "torch", _torch(cuda=None))

    assert "it needs triton, which is not installed, as on CPU builds of torch" in describe(error)


@pytest.mark.parametrize("kernels", ["Loss = None\n", "raise ImportError('too old')\n"])
def test_what_is_none_for_another_reason_blames_no_module(site: Path, kernels: str) -> None:
    write(
        site,
        {
            "pkg/__init__.py": "try:\n    from pkg.kernels import Loss\nexcept ImportError:\n    Loss = None\n\n"
            "def f():\n    Loss.apply()\n",
            "pkg/kernels.py": kernels,
        },
    )

    assert "it needs" not in describe(raised_by(site, "pkg.f()"))


def test_long_words_lose_their_middle_and_never_the_place(site: Path) -> None:
    write(site, {"pkg/__init__.py": "def f():\n    raise ValueError('begin' + 'x' * 5000 + 'end')\n"})
    text = describe(raised_by(site, "pkg.f()"))

    assert text.startswith("ValueError: beginxxx")
    assert "xend [called by" in text
    assert text.endswith("raised in pkg/__init__.py:2 in f]")
    assert len(text) < MESSAGE_LIMIT + 300


@pytest.mark.parametrize(("limit", "expected"), [(3, "a…f"), (4, "a…ef"), (6, "abcdef"), (5, "ab…ef")])
def test_what_is_cut_keeps_both_ends(limit: int, expected: str) -> None:
    assert in_the_middle("abcdef", limit) == expected


def _torch(*, cuda: str | None) -> types.ModuleType:
    torch = types.ModuleType("torch")
    torch.version = types.SimpleNamespace(cuda=cuda, hip=None)  # type: ignore[attr-defined]
    return torch
