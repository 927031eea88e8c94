"""What the expert runtime refuses: one class per condition, each with what happened."""

from __future__ import annotations


class ExpertsError(Exception):
    """A condition under which the expert runtime does nothing rather than something wrong."""


class UnrecognisedLoraError(ExpertsError):
    """A LoRA that is not understood in full, so that extracting it could lose a part."""


class IneligibleError(ExpertsError):
    """A block for which the library's own forward must run: the reason is the message."""


class NothingToEnableError(ExpertsError):
    """A model without any experts, or one that is enabled already."""
