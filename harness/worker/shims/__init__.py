"""What may be replaced in a library, for a block, where a recipe asks for it.

Each shim is one module. It is named in the result, and is gone afterwards. A module has ``shim``, a context manager
that yields whether it replaced anything: on most stacks there is nothing to mend.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager


@contextmanager
def shimmed(names: Sequence[str]) -> Iterator[list[str]]:
    """Apply shims within the block; yields the names of those that replaced something."""
    with ExitStack() as stack:
        applied = []
        for name in names:
            module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
            if stack.enter_context(module.shim()):
                applied.append(name)
        yield applied
