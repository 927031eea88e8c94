"""What the expert runtime refuses: one class per condition, each with what happened."""

from __future__ import annotations


class ExpertsError(Exception):
    """A condition under which the expert runtime does nothing rather than something wrong."""


class UnrecognisedLoraError(ExpertsError):
    """A LoRA that is not understood in full, so that extracting it could lose a part."""


class UnknownSchemeError(ExpertsError):
    """A quantisation that does not exist."""


class QloraConfigError(ExpertsError):
    """Settings that cannot be trained together, or would train something else than they say."""


class UnpackableShapeError(ExpertsError):
    """Weights whose shape the codec cannot pack."""


class ShapeMismatchError(ExpertsError):
    """Weights of another shape than the model's: transformers does not compare shapes where it quantises."""


class WrongDecodeError(ExpertsError):
    """The codec's kernel does not return the values that its codes mean: a fault of the stack."""


class NotFiniteError(ExpertsError):
    """Weights that hold NaN or infinity, which no code can mean."""


class NotWritableError(ExpertsError):
    """An operation that would have to write to quantised experts in a way that codes cannot follow."""


class LeftUnquantizedError(ExpertsError):
    """Weights that stayed in 16 bits although they were to be quantised."""


class UnsupportedStackError(ExpertsError):
    """The installed releases cannot do what was asked."""


class IneligibleError(ExpertsError):
    """A block for which the library's own forward must run: the reason is the message."""


class NothingToEnableError(ExpertsError):
    """A model without any experts, or one that is enabled already."""
