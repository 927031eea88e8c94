"""Versions that no index has: a commit of a git repository, a source tree, a wheel. Pure.

A stack of such says so in its id, by what it is and the first digits of what it was made of:
``tf5.25.0.dev0.git.1a2b3c4d``. Where it lay is known to the run that made it alone and stands in no result.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

SourceKind = Literal["git", "path", "wheel"]

SHOWN_DIGITS = 8
"""Hex digits of a digest that an id shows."""


@dataclass(frozen=True, kw_only=True)
class SourceSelector:
    """What a user named, before anything was looked at.

    Attributes:
        kind: what it is.
        text: as it was written: ``git+URL@REF``, a path.
    """

    kind: SourceKind
    text: str


class Source(BaseModel):
    """What a package of a stack is built from."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: SourceKind
    """A commit, a source tree or a wheel."""
    digest: str = Field(pattern=r"^[0-9a-f]{8,64}$")
    """The commit; the SHA-256 of the tree's files or of the wheel."""
    location: str = Field(default="", exclude=True, repr=False)
    """What is installed, as an address (PEP 508 ``name @ location``). It is the machine's and never stored."""

    @property
    def mark(self) -> str:
        """What an id adds to the version: ``.git.1a2b3c4d``."""
        return f".{self.kind}.{self.digest[:SHOWN_DIGITS]}"

    @property
    def named(self) -> str:
        """What a command line has to name to get the same again, with its place left open."""
        return f"git+URL@{self.digest}" if self.kind == "git" else self.kind.upper()

    @property
    def reusable(self) -> bool:
        """Whether what was found with it holds for its digest later, too: a tree is what somebody is working on."""
        return self.kind != "path"


def parse_source(text: str) -> SourceSelector | None:
    """Return the source that a text names, or None when it has the form of something else.

    ``git+`` begins a repository; ``/``, ``./``, ``../``, ``~/`` or ``file:`` a path; ``.whl`` ends a wheel.

    Raises:
        ValueError: an address of a kind that is not taken.
    """
    if text.startswith("git+"):
        if not re.match(r"git\+(?:https?|ssh|file)://\S+$", text):
            raise ValueError(f"{_shown(text)!r} is no git repository; write git+https://HOST/OWNER/NAME@REF")
        return SourceSelector(kind="git", text=text)
    if text.startswith("file:"):
        host, path = urlsplit(text)[1:3]
        if host not in {"", "localhost"} or not path:
            raise ValueError(f"{_shown(text)!r} names no place on this machine; write file:///PATH")
    if text.endswith(".whl"):
        if "://" in text and not text.startswith("file:"):
            raise ValueError(f"{_shown(text)!r}: a wheel has to lie on this machine; download it first")
        return SourceSelector(kind="wheel", text=text)
    if text in {".", ".."} or text.startswith(("/", "./", "../", "~/", "file:")):
        return SourceSelector(kind="path", text=text)
    if "://" in text or re.match(r"(?:www\.|git@)", text):
        raise ValueError(
            f"{_shown(text)!r} is no selector of versions; a repository is written git+https://HOST/OWNER/NAME@REF"
        )
    return None


def _shown(text: str) -> str:
    """Return a text as a message shows it: without what an address may hold of credentials, and of a query."""
    return re.sub(r"(://[^?]*)\?.*", r"\1?***", re.sub(r"://[^/\s]*@", "://***@", text))
