"""A warm worker: one process imports the libraries once and forks a child for each cell.

The host writes orders to standard input, a line of JSON each, and gets a line of JSON back for each, with the order's
key. The first line that it gets says whether children can be forked at all. There is no order to stop: a worker ends
when its input does.

The parent owns its children. It alone signals them, and it reaps one only when the host says so. Until then a process
id cannot be given to anybody else, so no signal hits a stranger. What a child leaves behind comes to the parent, which
ends it when it reaps the child. The parent runs no tensor operation and uses no
device.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from harness.worker.channel import take_channel
from harness.worker.newborn import Birth, SetByImports, TokenError, TokenPlace, begin_as_new, leave
from harness.worker.orphans import adopt_orphans, children, end_children, reap_children


class RefusedError(Exception):
    """Children of this process would not be what a cell needs.

    Attributes:
        kind: ``import`` (an import failed), ``cuda`` (the imports started CUDA), ``fork`` (a child would hang) or
            ``process`` (something else of this process).
        reason: in words.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


def serve(prepare: Callable[[], None], run: Callable[[Path], None]) -> None:
    """Import, say what came of it, and carry out orders until there are no more.

    Args:
        prepare: imports the libraries. Raises RefusedError where it knows that children cannot be forked.
        run: runs the cell of a request file; called in a child.
    """
    orders, answers = take_channel()
    adopt_orphans()
    before = dict(os.environ)
    try:
        token = _token_place()
        _prepare(prepare)
    except RefusedError as error:
        _answer(answers, {"ready": False, "kind": error.kind, "reason": error.reason})
        return
    _answer(answers, {"ready": True})
    imports = SetByImports.since(before)
    own = list(children())
    cells: dict[int, int] = {}
    for line in orders:
        order: dict[str, Any] = json.loads(line)
        number, key = int(order["cell"]), {"key": order["key"]}
        match order["order"]:
            case "start":
                birth = Birth.read(order)
                _flush()
                try:
                    pid = os.fork()
                except OSError as error:  # the machine's limit of processes, or of memory: no fault of this one
                    _answer(answers, {**key, "errno": error.errno})
                    continue
                if pid == 0:
                    orders.close()
                    answers.close()
                    _live(birth, token, imports, run)
                cells[number] = pid
                _answer(answers, {**key, "pid": pid})
            case "look":
                ended = os.waitid(os.P_PID, cells[number], os.WEXITED | os.WNOHANG | os.WNOWAIT)
                _answer(answers, {**key, "ended": ended is not None})
            case "signal":
                _signal_group(cells[number], int(order["number"]))
                _answer(answers, key)
            case "reap":
                _, status = os.waitpid(cells.pop(number), 0)
                # What it leaves behind has come here. A living cell's orphans have not: they are with that cell.
                spared = {*own, *cells.values()}
                end_children(spared)
                reap_children(spared)
                _answer(answers, {**key, "status": os.waitstatus_to_exitcode(status)})
            case other:
                raise ValueError(f"unknown order {other!r}")


def _signal_group(pid: int, number: int) -> None:
    """Signal a child's group. One that has not come to lead a group has no children, and is signalled alone."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        os.kill(pid, number)


def _token_place() -> TokenPlace:
    try:
        return TokenPlace.find()
    except TokenError as error:
        raise RefusedError("process", str(error)) from error


def _prepare(prepare: Callable[[], None]) -> None:
    """Import, and look whether what the imports left behind can be forked.

    Raises:
        RefusedError: it cannot.
    """
    try:
        prepare()
    except RefusedError:
        raise
    except SystemExit as error:
        traceback.print_exc()
        raise RefusedError("import", f"the imports end the process with exit status {error.code}") from error
    except Exception as error:
        # Whatever a library raises. Each cell imports it again, in a process of its own, and reports it.
        traceback.print_exc()
        raise RefusedError("import", f"{type(error).__name__}: {error}") from error
    refuse_threads()
    gc.collect()
    gc.freeze()  # a child's collector neither looks at the libraries' half a million objects nor copies their pages


def refuse_threads() -> None:
    """Look for Python threads: one may hold any lock at the moment of a fork, and a child would wait for it for ever.

    Native threads are not looked at. Those of OpenBLAS and pyarrow are there, and these libraries handle a fork. What
    matters of them is whether a child can compute, which is tried elsewhere.

    Raises:
        RefusedError: there are some.
    """
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if others:
        raise RefusedError("fork", f"the imports left Python threads running: {', '.join(others)}")


def _answer(answers: BinaryIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value).encode() + b"\n")
    answers.flush()


def _flush() -> None:
    """What is still buffered is the parent's to write; a child would write it again."""
    sys.stdout.flush()
    sys.stderr.flush()


def _live(birth: Birth, token: TokenPlace, imports: SetByImports, run: Callable[[Path], None]) -> NoReturn:
    """Be a cell's process, from its birth to its end."""
    code = 1
    try:
        begin_as_new(birth, token, imports)
        run(birth.request)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 — printed; a child must never return into its parent's code
        traceback.print_exc()
    finally:
        leave(code)
