"""Merges and loads by the real packages, in the environments of real stacks, as a user's own script does them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from harness.envs import child_environment, ensure_environment
from harness.matrix.catalogue import read_catalogue
from harness.matrix.config import load_config
from harness.matrix.locate import find_config

MERGE = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, adapter, out, dtype, tokenizer = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
model = PeftModel.from_pretrained(model, adapter)
model.merge_and_unload().save_pretrained(out)
if tokenizer == "tokenizer":
    AutoTokenizer.from_pretrained(base).save_pretrained(out)
"""


def merge_with_peft(
    stack_id: str, base: Path, adapter: Path, out: Path, *, dtype: str = "float32", tokenizer: bool = True
) -> Path:
    """``PeftModel.from_pretrained``, ``merge_and_unload`` and ``save_pretrained`` in a declared stack.

    Returns ``out``.
    """
    config = load_config(find_config(), read_catalogue())
    environment = ensure_environment(next(stack for stack in config.declared if stack.id == stack_id))
    scratch = out.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    arguments = [str(base), str(adapter), str(out), dtype, "tokenizer" if tokenizer else "none"]
    done = subprocess.run(
        [environment.python, "-I", "-c", MERGE, *arguments],
        env=child_environment(scratch=scratch, prefix=environment.prefix),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return out
