"""PEFT as most people publish with it: load base and adapter, ``merge_and_unload``, ``save_pretrained``.

The tokenizer is saved too. Everything is written anew by transformers. The tensors that its model does not load are
gone. Configurations are in this release's words. Keys and shards are its own. In bf16 a fused parameter is rounded
twice, the delta and then the sum (peft 0.18.1 to 0.21.2, ``ParamWrapper.merge``). A Linear's delta stays float32 until
it is added.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.engines.engine import TORCH_DTYPE, Claims, Engine, Job, Merged, run_in_this_process


class Peft:
    """PEFT's own merge. It counts nothing, so it claims nothing."""

    keeps_bytes = False

    def merge(self, job: Job) -> Merged:
        """Merge on the job's device, in the dtype that the base is stored in."""
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

        def work() -> Claims:
            dtype = getattr(torch, TORCH_DTYPE[job.dtype])
            base = AutoModelForCausalLM.from_pretrained(job.base, **{job.dtype_argument: dtype}).to(job.device)
            first, *others = job.adapters
            _resize(base, first)
            model = PeftModel.from_pretrained(base, first)
            for folder in others:
                model.load_adapter(folder, folder.name)
            names = ["default", *(folder.name for folder in others)]
            model.base_model.set_adapter(names)
            model.merge_and_unload().save_pretrained(job.out)
            # The class that the checkpoint's tokenizer_config.json names. Newer AutoTokenizers choose by model_type.
            PreTrainedTokenizerFast.from_pretrained(job.base).save_pretrained(job.out)
            return Claims()

        return run_in_this_process(work)


def _resize(base: Any, adapter: Path) -> None:
    """Resize the vocabulary to that of an adapter that has embeddings of its own, as PEFT asks of whoever loads it."""
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as saved:
        ends = [key for key in saved.keys() if "embed_tokens" in key and ".lora_" not in key]  # noqa: SIM118 - no dict
        rows = {saved.get_slice(key).get_shape()[0] for key in ends}
    if rows and rows != {base.get_input_embeddings().weight.shape[0]}:
        base.resize_token_embeddings(max(rows))


ENGINE: Engine = Peft()
