"""Make text from results safe and short enough to show; pure.

A reason is whatever a library put into an exception. A log is whatever a process wrote: colour codes, cursor movement,
carriage returns, right-to-left overrides that reorder what a person reads, a megabyte on one line. Escaping for a
format (HTML, XML, Markdown) is not enough against those. So they are taken out here, once, before any format sees them.
"""

from __future__ import annotations

import re
import unicodedata

_ESCAPE_SEQUENCES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x9b[0-?]*[ -/]*[@-~]"  # the same, as one 8-bit character
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c|$)"  # OSC, DCS, …: titles, links, clipboard
    r"|\x1b[ -/]*[0-~]?"  # what is left of escape sequences
)
_LINE_ENDS = re.compile(r"\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_NONCHARACTERS = re.compile(
    "[\ufdd0-\ufdef" + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17)) + "]"
)
_INVISIBLE = frozenset({"Cc", "Cf", "Cs"})
"""Unicode categories that are dropped: controls, format characters (bidi overrides, zero widths), lone surrogates."""


def clean(text: str) -> str:
    """Return ``text`` without escape sequences, control and format characters.

    Line ends become line feeds, tabs spaces. What is left is legal in XML 1.0 and encodable as UTF-8. Cleaning twice
    changes nothing.
    """
    if text.isascii() and text.isprintable():
        return text  # as most are: names and numbers
    text = _LINE_ENDS.sub("\n", _ESCAPE_SEQUENCES.sub("", text)).expandtabs(4)
    text = _NONCHARACTERS.sub("", text)
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) not in _INVISIBLE)


def one_line(text: str, limit: int = 160) -> str:
    """Return ``text``, cleaned, on one line of at most ``limit`` characters; what is cut off is shown as ``…``."""
    words = " ".join(clean(text).split())
    return words if len(words) <= limit else f"{words[: limit - 1].rstrip()}…"


def in_the_middle(text: str, limit: int) -> str:
    """Return ``text``, cleaned, on one line of at most ``limit`` characters; what is cut out of its middle is ``…``.

    A reason begins with what was said and ends with where. ``limit`` is at least 3.
    """
    words = " ".join(clean(text).split())
    if len(words) <= limit:
        return words
    head = (limit - 1) // 2
    return f"{words[:head].rstrip()}…{words[len(words) - (limit - 1 - head) :].lstrip()}"


def fold(text: str, *, max_chars: int = 4000, max_lines: int = 60) -> str:
    """Return ``text``, cleaned, with its middle left out when it is long.

    A third of the room goes to the head, where commands say what failed. The rest goes to the tail, where Python's
    tracebacks do. How much was left out is said in between. Trailing blank space is dropped.
    """
    lines = clean(text).strip("\n").rstrip().split("\n")
    if len(lines) > max_lines:
        head = max_lines // 3
        left_out = len(lines) - max_lines
        lines = [*lines[:head], f"… {left_out} lines left out …", *lines[head + left_out :]]
    folded = "\n".join(line.rstrip() for line in lines)
    if len(folded) > max_chars:
        head = max_chars // 3
        left_out = len(folded) - max_chars
        folded = f"{folded[:head]}\n… {left_out} characters left out …\n{folded[head + left_out :]}"
    return folded
