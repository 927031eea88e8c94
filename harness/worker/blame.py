"""What an exception says, and where it comes from: the call of ours that met it, the place of theirs that raised it.

A reason that names a place of ours alone blames nobody, and one that names torch's backward alone blames torch. So both
ends are named, and what is long is cut in its middle, never at either end.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

MESSAGE_LIMIT = 1200
"""Characters of an exception's own words. With the places behind them a reason stays below what a result holds."""

_OWN = Path(__file__).resolve().parents[2]
_STAGES = "harness/worker/stages/"
_AROUND = ("harness/worker/observation.py", "harness/worker/cell.py")
"""What every exception of a stage passes through."""
_INSTALLED = re.compile(r"^.*/(?:site|dist)-packages/")
_STANDARD = re.compile(r"^.*/lib/python3\.\d+/")
_COMPUTES = ("torch/", "numpy/")
"""Packages that raise what another has asked of them, so that it is named too."""


def describe(error: BaseException) -> str:
    """Return an error in a paragraph: its type and words, those of its causes, what is missing, and both places."""
    chain = list(_chain(error))
    words = ", because of ".join(_words(chain))
    parts = [_missing(chain), *_places(chain)]
    return f"{in_the_middle(words, MESSAGE_LIMIT)} [{'; '.join(filter(None, parts))}]"


def _words(chain: list[BaseException]) -> list[str]:
    """Return what each error of a chain says, without those whose words one before them quotes."""
    said: list[str] = []
    for number, link in enumerate(chain):
        words, kind = f"{type(link).__name__}: {link}", type(link)
        again = str(link) and any(type(one) is kind and str(link) in str(one) for one in chain[:number])
        if not again and not any(words in before for before in said):
            said.append(words)
    return said


def in_the_middle(text: str, limit: int) -> str:
    """Return a text with its middle left out where it is longer than ``limit``, which is at least 3."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head].rstrip()}…{text[len(text) - (limit - 1 - head) :].lstrip()}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from, in the end what was raised first. A circle ends it."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


def _frames(error: BaseException) -> list[tuple[str, int, FrameType]]:
    """Return the frames that an error passed through, the outermost first: its file as a reader knows it, its line."""
    found = []
    trace = error.__traceback__
    while trace is not None:
        found.append((_shown(trace.tb_frame.f_code.co_filename), trace.tb_lineno, trace.tb_frame))
        trace = trace.tb_next
    return found


def _shown(file: str) -> str:
    path = Path(file)
    if path.is_relative_to(_OWN):
        return path.relative_to(_OWN).as_posix()
    return _STANDARD.sub("python/", _INSTALLED.sub("", path.as_posix()))


def _is_ours(file: str) -> bool:
    return file.startswith("harness/")


def _places(chain: list[BaseException]) -> list[str]:
    """Return the outermost call of ours, and the innermost place of theirs, or of ours where nobody else had a part."""
    frames = [_frames(link) for link in chain]
    every = [frame for of_link in frames for frame in of_link]
    own = [frame for frame in every if _is_ours(frame[0]) and frame[0] not in _AROUND]
    of_stage = [frame for frame in own if frame[0].startswith(_STAGES)]
    called = f"called by {_place(*(of_stage or own)[0])}" if own else ""
    raised = next((of_link[-1] for of_link in reversed(frames) if of_link), None)
    if raised is None:
        return [called]
    places = [f"raised in {_place(*raised)}"]
    if raised[0].startswith(_COMPUTES) or not (_is_installed(raised) or _is_ours(raised[0])):
        asked = [frame for frame in every if _is_installed(frame) and not frame[0].startswith(_COMPUTES)]
        places = [*([f"asked for by {_place(*asked[-1])}"] if asked else []), *places]
    return [called, *places]


def _is_installed(frame: tuple[str, int, FrameType]) -> bool:
    return _INSTALLED.match(Path(frame[2].f_code.co_filename).as_posix()) is not None


def _place(file: str, line: int, frame: FrameType) -> str:
    return f"{file}:{line} in {frame.f_code.co_name}"


def _missing(chain: list[BaseException]) -> str:
    """Name the module for want of which it was raised, in words; nothing where none is known.

    It is what an import in the chain did not find. Or something was None that the raising function uses and that its
    file imports where it can: then that import is tried, and says itself what it does not find.
    """
    named = [link.name for link in chain if isinstance(link, ModuleNotFoundError) and link.name]
    if not named and (frames := _frames(chain[-1])):
        named = list(_not_imported(frames[-1][2]))
    if not named:
        return ""
    name = named[-1].partition(".")[0]
    return f"it needs {name}, which is not installed{_on_cpu_builds(name)}"


def _on_cpu_builds(name: str) -> str:
    torch: Any = sys.modules.get("torch")
    version = getattr(torch, "version", None)
    if version is None or getattr(version, "cuda", None) or getattr(version, "hip", None):
        return ""
    return ", as on CPU builds of torch" if name == "triton" else " (torch is a CPU build)"


def _not_imported(frame: FrameType) -> Iterator[str]:
    """Yield the modules that are not there and that names of a function would come from which are None."""
    absent = {name for name in frame.f_code.co_names if name in frame.f_globals and frame.f_globals[name] is None}
    if not absent:
        return
    try:
        tree = ast.parse(Path(frame.f_code.co_filename).read_text())
    except (OSError, ValueError, SyntaxError):  # there is no such file, or no source in it
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and absent & {item.asname or item.name for item in node.names}:
            try:
                importlib.import_module("." * node.level + (node.module or ""), frame.f_globals.get("__package__"))
            except ModuleNotFoundError as error:
                if error.name:
                    yield error.name
            except (ImportError, RuntimeError):  # another reason, which is not a module that is missing
                continue
