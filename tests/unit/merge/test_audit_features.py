"""What the audit says where an adapter holds more than lora pairs; merges are written here, not by the engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from format_samples import HIDDEN, VOCABULARY, Numbers, delta, pair, small_base, write_adapter, write_base
from safetensors.torch import load_file

from harness.merge import AuditReport, InputRefusedError, audit
from harness.merge.adapter_tools.convert import convert_adapter
from harness.merge.adapter_tools.inspection import inspect_adapter

Q = "model.layers.0.self_attn.q_proj"
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def numbers() -> Numbers:
    return Numbers()


def verdicts(report: AuditReport) -> dict[str, tuple[str, str | None]]:
    return {row.key: (row.verdict, row.detail) for row in report.rows if row.verdict != "same"}


class Case:
    """A base and an adapter with a LoRA on q_proj; ``right`` is the merge in float64."""

    def __init__(self, folder: Path, base: Tensors, lora: Tensors, **config: object) -> None:
        self.folder, self.tensors = folder, base
        self.base = write_base(folder / "base", base)
        self.adapter = write_adapter(folder / "adapter", lora, **config)
        self.right = dict(base)
        if f"{Q}.lora_A.weight" in lora:
            self.right[f"{Q}.weight"] = (base[f"{Q}.weight"].double() + torch.tensor(delta(lora, Q))).float()

    def audit(self, key: str | None = None, value: torch.Tensor | None = None) -> dict[str, tuple[str, str | None]]:
        """The verdicts on the right merge, or on it with another tensor in one place."""
        written = self.right if key is None or value is None else {**self.right, key: value}
        return verdicts(audit(self.base, self.adapter, write_base(self.folder / "merged", written)))


def test_a_fully_trained_module(tmp_path: Path, numbers: Numbers) -> None:
    trained = numbers(VOCABULARY, HIDDEN)
    lora = {**pair(numbers, Q, 7, HIDDEN), f"{HEAD}.weight": trained}
    case = Case(tmp_path, small_base(numbers), lora, modules_to_save=[HEAD])
    key, base = f"{HEAD}.weight", case.tensors[f"{HEAD}.weight"]
    half = trained.clone()
    half[3] = base[3]

    assert case.audit(key, trained)[key] == ("applied", "bit-exact")
    assert case.audit(key, trained.bfloat16())[key] == ("applied", "bit-exact")
    assert case.audit()[key] == ("untouched", "still the base")
    assert case.audit(key, half)[key][0] == "wrong"
    assert case.audit(key, base + trained)[key][0] == "wrong"
    assert case.audit(key, trained)[f"{Q}.weight"][0] == "applied"


def test_a_module_saved_whole_but_not_trained_cannot_be_told_from_the_base(tmp_path: Path, numbers: Numbers) -> None:
    base = small_base(numbers)
    lora = {**pair(numbers, Q, 7, HIDDEN), f"{HEAD}.weight": base[f"{HEAD}.weight"]}

    found = Case(tmp_path, base, lora, modules_to_save=[HEAD]).audit()

    assert found[f"{HEAD}.weight"] == ("indistinguishable", "zero-delta")


def test_a_trained_module_rounded_to_the_dtype_that_the_model_was_loaded_in(tmp_path: Path, numbers: Numbers) -> None:
    base = small_base(numbers)
    base[f"{HEAD}.weight"] = base[f"{HEAD}.weight"].bfloat16()
    trained = numbers(VOCABULARY, HIDDEN)
    lora = {**pair(numbers, Q, 7, HIDDEN), f"{HEAD}.weight": trained}
    case, key = Case(tmp_path, base, lora, modules_to_save=[HEAD]), f"{HEAD}.weight"

    assert case.audit(key, trained)[key] == ("applied", "bit-exact")
    assert case.audit(key, trained.bfloat16().float())[key] == ("applied", "low-precision")


def test_trained_tokens(tmp_path: Path, numbers: Numbers) -> None:
    rows = numbers(2, HIDDEN)
    lora = {**pair(numbers, Q, 7, HIDDEN), f"{EMBEDDING}.token_adapter.trainable_tokens_delta": rows}
    case = Case(tmp_path, small_base(numbers), lora, trainable_token_indices={"embed_tokens": [8, 2]})
    key, base = f"{EMBEDDING}.weight", case.tensors[f"{EMBEDDING}.weight"]
    right, exchanged, elsewhere = base.clone(), base.clone(), base.clone()
    right[8], right[2] = rows[0], rows[1]
    exchanged[2], exchanged[8] = rows[0], rows[1]
    elsewhere[8], elsewhere[2], elsewhere[5] = rows[0], rows[1], 0

    assert case.audit(key, right)[key] == ("applied", "bit-exact")
    assert case.audit()[key][0] == "untouched"
    assert case.audit(key, exchanged)[key][0] == "wrong"
    assert case.audit(key, elsewhere)[key] == ("wrong", "elements that no delta reaches are not the base's")


def test_a_lora_on_an_embedding(tmp_path: Path, numbers: Numbers) -> None:
    first, second = numbers(2, VOCABULARY), numbers(HIDDEN, 2)
    lora = {f"{EMBEDDING}.lora_embedding_A": first, f"{EMBEDDING}.lora_embedding_B": second}
    case = Case(tmp_path, small_base(numbers), lora, target_modules=["embed_tokens"])
    key, base = f"{EMBEDDING}.weight", case.tensors[f"{EMBEDDING}.weight"]
    change = 1.5 * (second.double() @ first.double()).T

    assert case.audit(key, (base.double() + change).float())[key][0] == "applied"
    assert case.audit()[key][0] == "untouched"
    assert case.audit(key, (base.double() + change / 2).float())[key][0] == "partial"


def test_a_bias_on_lora_b(tmp_path: Path, numbers: Numbers) -> None:
    base, lora = small_base(numbers, bias=True), pair(numbers, Q, 7, HIDDEN)
    lora[f"{Q}.lora_B.bias"] = numbers(7)
    case, key = Case(tmp_path, base, lora, lora_bias=True), f"{Q}.bias"
    change = 1.5 * lora[f"{Q}.lora_B.bias"].double()

    assert case.audit(key, (base[key].double() + change).float())[key][0] == "applied"
    assert case.audit()[key][0] == "untouched"
    assert case.audit(key, (base[key].double() + change / 3).float())[key][0] == "partial"
    assert case.audit(key, numbers(7))[key][0] == "wrong"


def test_inspection_names_what_is_not_a_pair(tmp_path: Path, numbers: Numbers) -> None:
    lora = {
        **pair(numbers, Q, 7, HIDDEN),
        f"{Q}.lora_B.bias": numbers(7),
        f"{HEAD}.weight": numbers(VOCABULARY, HIDDEN),
        f"{EMBEDDING}.token_adapter.trainable_tokens_delta": numbers(2, HIDDEN),
    }
    settings = {"lora_bias": True, "modules_to_save": [HEAD], "trainable_token_indices": {"embed_tokens": [8, 2]}}
    facts = inspect_adapter(write_adapter(tmp_path / "adapter", lora, **settings))

    assert facts.whole == (f"{HEAD}.weight",)
    assert facts.tokens == {EMBEDDING: 2}
    assert facts.features == ("lora_bias",)
    assert facts.parameters == sum(tensor.numel() for tensor in lora.values())


def test_conversion_refuses_an_adapter_name_in_the_keys(tmp_path: Path, numbers: Numbers) -> None:
    module = "model.layers.0.mlp.experts.0.down_proj"
    lora = {
        key.replace("_A.", "_A.mine.").replace("_B.", "_B.mine."): value
        for key, value in pair(numbers, module, 7, 6).items()
    }
    adapter = write_adapter(tmp_path / "adapter", lora, target_modules=["down_proj"])

    with pytest.raises(InputRefusedError, match="carry its name"):
        convert_adapter(adapter, tmp_path / "out", to_experts="fused")


def test_conversion_keeps_what_is_not_an_experts_pair(tmp_path: Path, numbers: Numbers) -> None:
    module = "model.layers.0.mlp.experts.0.down_proj"
    trained, rows = numbers(VOCABULARY, HIDDEN), numbers(2, HIDDEN)
    lora = {
        **pair(numbers, module, 7, 6),
        f"{HEAD}.weight": trained,
        f"{EMBEDDING}.token_adapter.trainable_tokens_delta": rows,
    }
    settings = {"modules_to_save": [HEAD], "trainable_token_indices": {"embed_tokens": [8, 2]}}
    adapter = write_adapter(tmp_path / "adapter", lora, target_modules=["down_proj"], **settings)

    convert_adapter(adapter, tmp_path / "fused", to_experts="fused")
    convert_adapter(tmp_path / "fused", tmp_path / "back", to_experts="per-expert")
    found = load_file(tmp_path / "fused" / "adapter_model.safetensors")

    assert torch.equal(found[f"base_model.model.{HEAD}.weight"], trained)
    assert torch.equal(found[f"base_model.model.{EMBEDDING}.token_adapter.trainable_tokens_delta"], rows)
    assert "base_model.model.model.layers.0.mlp.experts.lora_A.weight" in found
    before, after = (load_file(path / "adapter_model.safetensors") for path in (adapter, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_conversion_refuses_dora_on_experts(tmp_path: Path, numbers: Numbers) -> None:
    module = "model.layers.0.mlp.experts.0.down_proj"
    lora = {**pair(numbers, module, 7, 6), f"{module}.lora_magnitude_vector": numbers(7).abs()}
    adapter = write_adapter(tmp_path / "adapter", lora, target_modules=["down_proj"], use_dora=True)

    with pytest.raises(InputRefusedError, match="use_dora"):
        convert_adapter(adapter, tmp_path / "out", to_experts="fused")


def test_a_bias_of_an_expert_is_judged_by_itself(tmp_path: Path, numbers: Numbers) -> None:
    stem = "model.layers.0.mlp.experts"
    base = small_base(numbers)
    lora: Tensors = {}
    for expert in (0, 1):
        for leaf in ("gate_proj", "up_proj"):
            base[f"{stem}.{expert}.{leaf}.weight"], base[f"{stem}.{expert}.{leaf}.bias"] = (
                numbers(7, HIDDEN),
                numbers(7),
            )
            module = f"{stem}.{expert}.{leaf}"
            lora |= {**pair(numbers, module, 7, HIDDEN), f"{module}.lora_B.bias": numbers(7)}
    case = Case(tmp_path, base, lora, lora_bias=True, target_modules=["gate_proj", "up_proj"])
    for module in {key.rpartition(".lora_")[0] for key in lora}:
        weight, bias = f"{module}.weight", f"{module}.bias"
        case.right[weight] = (base[weight].double() + torch.tensor(delta(lora, module))).float()
        case.right[bias] = (base[bias].double() + 1.5 * lora[f"{module}.lora_B.bias"].double()).float()
    key = f"{stem}.0.gate_proj.bias"

    assert {verdict for verdict, _ in case.audit().values()} == {"applied"}
    assert case.audit(key, numbers(7))[key][0] == "wrong"


def test_experts_stored_transposed_are_judged_under_their_own_names_only(tmp_path: Path, numbers: Numbers) -> None:
    stem = "model.layers.0.mlp.experts"
    base = {
        **small_base(numbers),
        f"{stem}.gate_up_proj": numbers(2, HIDDEN, 8),
        f"{stem}.down_proj": numbers(2, 4, HIDDEN),
    }
    first, second = numbers(4, HIDDEN), numbers(8, 4)
    lora = {f"{stem}.lora_A.weight": first, f"{stem}.lora_B.weight": second}
    settings = {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj"], "peft_version": "0.19.1"}
    folder = write_base(tmp_path / "base", base, model_type="gpt_oss", num_local_experts=2)
    adapter = write_adapter(tmp_path / "adapter", lora, **settings)
    change = torch.stack([
        1.5 * (second.double()[:, expert::2] @ first.double()[2 * expert : 2 * expert + 2]).T for expert in (0, 1)
    ])  # fmt: skip
    key = f"{stem}.gate_up_proj"
    right = {**base, key: (base[key].double() + change).float()}
    single = {name: value for name, value in right.items() if name != key}
    single |= {f"{stem}.{expert}.gate_proj.weight": right[key][expert, :, ::2].T for expert in (0, 1)}

    assert verdicts(audit(folder, adapter, write_base(tmp_path / "m", right)))[key][0] == "applied"
    assert verdicts(audit(folder, adapter, folder))[key][0] == "untouched"
    with pytest.raises(InputRefusedError, match="stores fused experts transposed"):
        audit(folder, adapter, write_base(tmp_path / "single", single))
