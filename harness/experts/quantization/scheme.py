"""How experts are quantised: which code, and how its scales are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from harness.experts.errors import UnknownSchemeError

Code = Literal["nf4", "fp4", "int8"]
CODES: tuple[Code, ...] = get_args(Code)
BLOCKSIZE = 64
"""Weights that share a scale in 4 bits: what transformers' BitsAndBytesConfig quantises Linears with."""


@dataclass(frozen=True)
class Scheme:
    """How experts are quantised.

    ``nf4`` and ``fp4`` have blocks of 64 with float32 scales, which ``double_quant`` quantises again to 8 bits.
    ``int8`` has one scale a row.

    Raises:
        UnknownSchemeError: another code, or double quantisation of int8, which has none.
    """

    code: Code
    double_quant: bool = False

    def __post_init__(self) -> None:
        """Check the two."""
        if self.code not in CODES:
            raise UnknownSchemeError(
                f"no code {self.code!r} for experts; known are {', '.join(CODES)}.{_meant(self.code)}"
            )
        if self.code == "int8" and self.double_quant:
            raise UnknownSchemeError("int8 has one scale a row, which double quantisation does not apply to.")

    def __str__(self) -> str:
        """Return it as reports name it."""
        return f"{self.code}, double quantised" if self.double_quant else self.code


def _meant(text: object) -> str:
    """Return which code was meant where only case or a hyphen is off."""
    plain = "".join(letter for letter in str(text).lower() if letter.isalnum())
    return f" Did you mean {plain!r}?" if plain in CODES else ""
