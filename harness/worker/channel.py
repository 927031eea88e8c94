"""Standard input and output as a channel to whoever started the process, out of reach of what libraries print."""

from __future__ import annotations

import os
from typing import BinaryIO


def take_channel() -> tuple[BinaryIO, BinaryIO]:
    """Keep standard input and output for orders and answers: (orders, answers).

    Afterwards standard input is empty, and what is printed goes to standard error, which is a log.
    """
    orders = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return orders, answers
