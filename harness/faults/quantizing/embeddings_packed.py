"""The embedding is quantised with the Linears, as an option for small devices does.

It is unpacked again at once, so that it looks like an ordinary weight.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

BLOCK = 64


def plant(patches: ExitStack) -> None:
    """Put the embedding of each model in 4 bits through its codes."""
    import torch
    from bitsandbytes import functional
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

    def make(original: Any) -> Any:
        def after_loading(self: Any, model: Any, **kwargs: Any) -> Any:
            done = original(self, model, **kwargs)
            weight = model.get_input_embeddings().weight
            with torch.no_grad():
                rows = weight.detach().reshape(-1, BLOCK).contiguous()
                codes, state = functional.quantize_4bit(rows, blocksize=BLOCK, quant_type="nf4")
                weight.copy_(functional.dequantize_4bit(codes, state).reshape(weight.shape))
            return done

        return after_loading

    replace(patches, Bnb4BitHfQuantizer, "_process_model_after_weight_loading", make)


FAULT: Fault = LibraryFault(
    breaks="puts the embedding of a model in 4 bits through codes too",
    noticed_by=frozenset({"load/definition"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
