"""What is the machine's is taken out of texts that are kept: paths become ``<env>``, ``<home>`` and so on.

Results travel: they are committed, published and compared between machines. Only whole path components are replaced
(``/home/ann`` does not touch ``/home/anna``). The longest prefix goes first, so that an environment inside the home
directory is ``<env>`` and not ``<home>/…``. The standard library of an interpreter and credentials in addresses go as
well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from harness.execution.suspicious_json import encodable

_STDLIB = re.compile(r"(?<![\w<>./-])(?:/[\w.+@-]+)+(?=/lib/python3\.\d+/)")
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
_STARTS = r"(?:(?<![\w.+@-])|(?<=-[IL]))"  # not inside another path; compilers glue a path to its flag
_ENDS = r"(?![\w+@-]|\.\w)"  # where a path component ends; a full stop may end a sentence


class Redactor:
    """Replaces prefixes in texts and, recursively, in JSON values."""

    def __init__(self, prefixes: Mapping[str, Path]) -> None:
        """Remember the prefixes, also as they read with symbolic links resolved.

        Args:
            prefixes: path by placeholder name, as ``{"env": Path("/home/ann/.cache/…"), "home": Path("/home/ann")}``.
        """
        spelled = {
            str(form): f"<{name}>" for name, path in prefixes.items() for form in (path, path.resolve()) if form.name
        }
        self._replacements = dict(sorted(spelled.items(), key=lambda item: -len(item[0])))
        alternatives = "|".join(re.escape(prefix) for prefix in self._replacements) or r"(?!)"
        self._pattern = re.compile(rf"{_STARTS}(?:{alternatives}){_ENDS}")

    def text(self, text: str) -> str:
        """Return ``text`` without prefixes, interpreter paths, credentials and what cannot be encoded."""
        text = encodable(text)
        text = self._pattern.sub(lambda match: self._replacements[match[0]], text)
        return _CREDENTIALS.sub("<credentials>@", _STDLIB.sub("<python>", text))

    def mapping(self, mapping: Mapping[str, object]) -> dict[str, object]:
        """Return a JSON object with every string in it treated; keys stay as they are."""
        return {key: self.value(item) for key, item in mapping.items()}

    def value(self, value: object) -> object:
        """Return a JSON value with every string in it treated."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, dict):
            return self.mapping(value)
        return value
