"""The bench itself: where checkpoints lie, how a contender is run in a given state of the page cache, and what is
cleaned up.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from harness.bench import adapters, layouts
from harness.bench.cache_state import State, cached_share, files_below, prepare
from harness.bench.checkpoints import write_adapter, write_base
from harness.bench.pairs import rounds
from harness.bench.process import MeasurementError, Ran, copy_code, run_measured
from harness.bench.settings import Settings, size_text
from harness.bench.stacks import NoSuchStackError, declared_python
from harness.envs import Unresolvable, child_environment
from harness.errors import HarnessError

TINY = 20_000_000
"""Bytes of the checkpoint that contenders warm up on."""

LIMIT = 1800.0
"""Seconds that a measured process may take."""

ADAPTERS = {"experts": adapters.of_experts, "attention": adapters.of_attention}


def _write_line(file: IO[str], line: str) -> None:
    file.write(line + "\n")


def contender(name: str) -> ModuleType:
    """Return the module of a contender."""
    return importlib.import_module(f"harness.bench.contenders.{name}")


class Lab:
    """One run's workplace."""

    def __init__(self, work: Path, settings: Settings, log: Callable[[str], None]) -> None:
        """Take ``work``, which is emptied, as the folder for checkpoints, outputs and logs."""
        self.settings = settings
        self.log = log
        self.work = work
        shutil.rmtree(work, ignore_errors=True)
        (work / "logs").mkdir(parents=True)
        (work / "scratch").mkdir()
        self._code = work / "code"
        self.code_sha256 = copy_code(self._code)
        self._pythons: dict[str, Path] = {}
        self._warmed: set[str] = set()
        self.versions: dict[str, dict[str, str]] = {}

    # Inputs

    def base(self, size: int) -> Path:
        """Return the base checkpoint of a size, written when it is first asked for."""
        folder = self.work / f"base-{size}"
        if not folder.exists():
            self.log(f"writing the base of {size_text(size)}")
            write_base(folder, layouts.qwen3_moe_of(size), seed=self.settings.seed)
        return folder

    def adapter(self, size: int, kind: str) -> Path:
        """Return the adapter of a kind (``experts``, ``attention``) for the base of a size."""
        folder = self.work / f"adapter-{size}-{kind}"
        if not folder.exists():
            write_adapter(folder, ADAPTERS[kind](layouts.qwen3_moe_of(size)), seed=self.settings.seed + 1)
        return folder

    def output(self, name: str) -> Path:
        """Return the path of an output that does not exist yet."""
        folder = self.work / f"out-{name}"
        self.remove(folder)
        return folder

    def remove(self, *folders: Path) -> None:
        """Remove folders, and wait until the disk has done so: the next measurement should not pay for it."""
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        os.sync()

    # Processes

    def python(self, name: str) -> Path:
        """Return the interpreter of a contender, made when it is first asked for.

        Raises:
            MeasurementError: its environment cannot be made.
        """
        return self._interpreter(name, contender(name).python)

    def stack_python(self, transformers: str) -> Path:
        """Return the interpreter of the first declared stack whose transformers begins with these digits, made when it
        is first asked for.

        Raises:
            MeasurementError: its environment cannot be made, or there is no such stack.
        """
        return self._interpreter(f"transformers-{transformers}", partial(declared_python, transformers=transformers))

    def _interpreter(self, name: str, make: Callable[[Callable[[str], None]], Path]) -> Path:
        if name not in self._pythons:
            with (self.work / "logs" / f"environment-{name}.log").open("w", encoding="utf-8") as lines:
                try:
                    self._pythons[name] = make(lambda line: _write_line(lines, line))
                except (HarnessError, Unresolvable, NoSuchStackError) as error:
                    raise MeasurementError(f"no environment could be made: {error}") from error
        return self._pythons[name]

    def run(
        self,
        module: str,
        request: dict[str, object],
        *,
        inputs: Sequence[Path],
        state: State,
        python: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> Ran:
        """Run a module of a contender or a program with its ``inputs`` in ``state``, and ``variables`` besides its
        usual environment.

        Raises:
            MeasurementError: it failed.
        """
        name = module.rpartition(".")[2]
        interpreter = self.python("copy") if python is None else python
        scratch = self.work / "scratch"
        ran = run_measured(
            interpreter,
            self._code,
            module,
            request,
            environment={
                **child_environment(scratch=scratch, threads=len(os.sched_getaffinity(0))),
                **(variables or {}),
            },
            folder=scratch,
            log=self.work / "logs" / f"{name}.log",
            before=lambda: prepare(state, files_below(*inputs)),
            limit=LIMIT,
        )
        self.versions[name] = ran.versions
        return ran

    def warm_up(self, name: str) -> None:
        """Let a contender merge something tiny once, so that byte code is compiled and environments are made before
        anything counts.

        Raises:
            MeasurementError: it failed.
        """
        if name not in self._warmed:
            self._warmed.add(name)
            self.merge(name, TINY, "experts", "warm")

    def forget(self) -> None:
        """Remove checkpoints that can be written again, for the sake of the room that they take."""
        for size in self.settings.sizes[1:]:
            self.remove(self.work / f"base-{size}", *(self.work / f"adapter-{size}-{kind}" for kind in ADAPTERS))

    def merge(self, name: str, size: int, kind: str, state: State, out: Path | None = None) -> Ran:
        """Let a contender merge an adapter into a base; the output is removed unless ``out`` says where it is wanted.

        Raises:
            MeasurementError: it failed.
        """
        base, adapter = self.base(size), self.adapter(size, kind)
        target = out if out is not None else self.output(name)
        request: dict[str, object] = {"base": str(base), "adapter": str(adapter), "out": str(target)}
        try:
            return self.run(
                f"harness.bench.contenders.{name}",
                request,
                inputs=(base, adapter),
                state=state,
                python=self.python(name),
            )
        finally:
            if out is None:
                self.remove(target)

    def series(
        self, names: Sequence[str], size: int, kind: str, state: State, count: int, tick: Callable[[], None]
    ) -> dict[str, Any]:
        """Return ``count`` interleaved rounds of contenders: for each of them what every run measured.

        A contender that fails is left out of the rounds that follow, and its entry is ``{"failed": reason}``.
        """
        found: dict[str, Any] = {}
        for name in names:
            try:
                self.warm_up(name)
                found[name] = []
            except MeasurementError as error:
                found[name] = {"failed": self.plain(str(error))}
        for order in rounds(names, count):
            for name in order:
                if isinstance(found[name], list):
                    try:
                        found[name].append(self.merge(name, size, kind, state).to_json())
                    except MeasurementError as error:
                        found[name] = {"failed": self.plain(str(error))}
            tick()
        return found

    def cold_check(self, size: int) -> float:
        """Return the share of the base's pages that is still cached after dropping them."""
        files = files_below(self.base(size))
        prepare("cold", files)
        return cached_share(files)

    def plain(self, text: str) -> str:
        """Return a message without this machine's paths, at a length that a table bears."""
        text = text.replace(str(self.work), "<work>").replace(str(Path.home()), "<home>")
        return " ".join(text.split())[:400]
