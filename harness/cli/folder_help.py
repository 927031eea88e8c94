"""Help texts that name the members of a folder: on the terminal by name, in the documentation by the folder.

The page of the command line then stays as it is when a file is added to the folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self


class FolderHelp(str):
    """A help text as the terminal shows it, with what the documentation says in its place.

    Attributes:
        in_docs: the text with the folder's path instead of the names.
    """

    __slots__ = ("in_docs",)
    in_docs: str

    def __new__(cls, meaning: str, names: Iterable[str], *, folder: str, others: str = "") -> Self:
        """Return the text.

        Args:
            meaning: its first sentences.
            names: what can be chosen.
            folder: the path, from the root of the repository, whose files these names are.
            others: what else can be chosen: a sentence of its own.
        """
        end = f". {others}" if others else "."
        made = super().__new__(cls, f"{meaning} One of: {', '.join(names)}{end}")
        made.in_docs = f"{meaning} One of the names of the files in `{folder}`, which `--help` lists{end}"
        return made
