"""What a recipe module provides: ``RECIPE``, a frozen description of what gets a LoRA and how it is trained.

Adding a recipe is adding ``recipes/<name>.py`` (dashes become underscores) and its test.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from harness.worker.checkpoints.tensors import Kind
from harness.worker.recipes.quantization import Quantization


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained and how.

    Attributes:
        summary: what gets a LoRA, and on what base: one line, a literal, for the documentation.
        kinds: what is to get a LoRA: attention (linear attention included), expert, shared_expert, dense, router,
            embedding, head, and other, which is the gate of a shared expert.
        expert_roles: which fused expert parameters are targeted. Per-expert Linears follow: gate_up_proj is gate_proj
            and up_proj.
        target_modules: PEFT's, as a user writes it: names of modules, or ``all-linear``. Where it is empty, as
            ``target_parameters``, everything of ``kinds`` is named in full.
        target_parameters: PEFT's, as a user writes it.
        whole: what is trained whole instead (PEFT's ``modules_to_save``); some of ``kinds``.
        new_tokens: how many rows the vocabulary is resized by before anything is attached.
        bias: PEFT's, which biases are trained beside the LoRA: none, or those of Linears that have one.
        steps: optimizer steps.
        learning_rate: of AdamW, constant. It is high, because a few steps must move every targeted kind far enough. A
            merge that drops one of them must show.
        alpha_over_rank: lora_alpha / r, which is the scaling without rslora and patterns.
        rank_pattern: PEFT's, pattern of a name → rank; the others have the geometry's.
        alpha_pattern: PEFT's, pattern of a name → alpha; the others have ``alpha_over_rank`` times the geometry's rank.
        use_rslora: whether alpha is divided by the root of the rank (arXiv 2312.03732), and not by the rank.
        frozen: what has a LoRA of an earlier adapter too, which is active and not trained; some of ``kinds``.
            Experts want a PEFT whose adapters may all target parameters, from 0.20 on.
        init_lora_weights: PEFT's, how a pair begins: True is Kaiming's for lora_A and zero for lora_B.
        use_dora: whether a magnitude for each output feature is trained beside each pair.
        dropout: share of a pair's inputs that are left out while it is trained.
        geometry: the preset that cells of this recipe have unless one is asked for.
        quantization: how the base is quantised while it is trained on; None: not at all.
        loaded_before: how a first model is quantised that is loaded in the same process before every other one, and
            kept while that is loaded; None: there is none.
        texts: what is trained on: sequences of one length; of several; or conversations, which the trainer renders by a
            chat template and of which it trains on the answers.
        packing: whether several sequences lie in a row (TRL's ``packing``, by its own strategy).
        accumulation: in how many batches a step's sequences are taken.
        checkpointing: whether layers are computed again in the backward pass (``gradient_checkpointing``).
        max_grad_norm: what a step's gradient is clipped to, all tensors together. Where batches are added up it is out
            of reach, because clipping would hide a wrong factor.
        autocast: whether the trainer computes in bfloat16 by autocast (``bf16``), weights staying float32.
        resumed: whether a second trainer, with a model of its own, goes on from a checkpoint that the first one saved
            on its way, and must arrive at the same adapter.
        per_expert: whether the saved adapter is loaded once more with a pair for every expert's Linear, as
            transformers 4 has it.
        shims: modules of ``worker/shims`` that may replace something while an adapter is loaded, dashes for
            underscores.
    """

    summary: str
    kinds: tuple[Kind, ...]
    expert_roles: tuple[str, ...] = ("gate_up_proj", "down_proj")
    target_modules: tuple[str, ...] | Literal["all-linear"] = ()
    target_parameters: tuple[str, ...] = ()
    whole: tuple[Kind, ...] = ()
    new_tokens: int = 0
    bias: Literal["none", "lora_only"] = "none"
    steps: int = 8
    learning_rate: float = 2e-2
    alpha_over_rank: int = 2
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, int] = field(default_factory=dict)
    use_rslora: bool = False
    frozen: tuple[Kind, ...] = ()
    init_lora_weights: bool | Literal["gaussian"] = True
    use_dora: bool = False
    dropout: float = 0.0
    geometry: str = "distinct"
    quantization: Quantization | None = None
    loaded_before: Quantization | None = None
    texts: Literal["equal", "unequal", "chats"] = "equal"
    packing: bool = False
    accumulation: int = 1
    checkpointing: bool = False
    max_grad_norm: float = 1.0
    autocast: bool = False
    resumed: bool = False
    per_expert: bool = False
    shims: tuple[str, ...] = ()

    @property
    def plain_batches(self) -> bool:
        """Whether a step is one batch of rows of one length, each a sequence, computed once."""
        return self.texts == "equal" and not self.packing and self.accumulation == 1 and not self.checkpointing

    @property
    def as_written(self) -> bool:
        """Whether PEFT is told what a user writes, of which a stack may make less than was meant."""
        return bool(self.target_modules or self.target_parameters)

    def __post_init__(self) -> None:
        """Refuse a recipe that trains nothing, before anything is built.

        Raises:
            ValueError: nothing gets a LoRA; on a quantised base that would be training codes.
        """
        if not self.kinds or ("expert" in self.kinds and not self.expert_roles):
            raise ValueError("a recipe names the kinds that get a LoRA, and for experts their roles")
        if self.linears_only and ("expert" in self.kinds or self.quantization is not None):
            raise ValueError("PEFT has no DoRA and no dropout on fused experts, and no cell measures them on codes")
        if self.as_written and (self.frozen or self.linears_only or self.quantization is not None):
            raise ValueError("targets as users write them are a plain LoRA's")
        if not set(self.whole) <= set(self.kinds) & {"embedding", "head"}:
            raise ValueError("embeddings and head are trained whole, where they are trained at all")
        if self.bias != "none" and (self.as_written or self.frozen or self.quantization is not None):
            raise ValueError("biases are trained beside a plain LoRA")
        if self.new_tokens and (self.frozen or self.quantization is not None or self.resumed or self.per_expert):
            raise ValueError("a vocabulary is resized for a plain LoRA")
        if not set(self.frozen) <= set(self.kinds):
            raise ValueError("an earlier adapter has some of the kinds that are trained")

    @property
    def linears_only(self) -> bool:
        """Whether PEFT refuses this on parameters (``lora.ParamWrapper``, 0.18.1 to 0.21.2)."""
        return self.use_dora or self.dropout > 0


def recipe(name: str) -> Recipe:
    """Return a recipe by its name on the command line, as ``lora-attention``.

    Raises:
        ModuleNotFoundError: there is no such recipe; the host checks names before a cell starts.
    """
    module = importlib.import_module(f"harness.worker.recipes.{name.replace('-', '_')}")
    found: Recipe = module.RECIPE
    return found
