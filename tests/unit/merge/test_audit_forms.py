"""What the audit says where a right merge changes the form of tensors: quantised bases, DoRA, resized and untied
vocabularies.

Right merges are worked out in float64 from the samples' own codes and factors; nothing here is merged by the engine.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from format_samples import HIDDEN, VOCABULARY, Numbers, delta, exact, pair, small_base, write_adapter, write_base
from quantised_samples import e4m3, eight_bit, four_bit, mxfp4

from harness.merge import AuditReport, audit

Q, O_PROJ = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"
EXPERTS, EMBEDDING, HEAD = "model.layers.0.mlp.experts", "model.embed_tokens", "lm_head"
OUT, WIDE = 48, 40
Tensors = dict[str, torch.Tensor]
QuantisedSource = tuple[Tensors, np.ndarray]


@pytest.fixture
def numbers() -> Numbers:
    return Numbers()


def verdicts(report: AuditReport) -> dict[str, tuple[str, str | None]]:
    return {row.key: (row.verdict, row.detail) for row in report.rows}


def fp8(key: str, shape: tuple[int, int], seed: int = 0) -> QuantisedSource:
    """FP8 in blocks of 16 x 16 with random codes, none of them NaN or zero."""
    random = np.random.default_rng(seed)
    codes = random.choice([code for code in range(256) if code & 127 not in {0, 127}], shape)
    scales = (random.random((-(-shape[0] // 16), -(-shape[1] // 16))) / 64).astype(np.float32)
    spread = scales.repeat(16, 0).repeat(16, 1)[: shape[0], : shape[1]]
    values = (np.vectorize(e4m3)(codes).astype(np.float32) * spread).astype(np.float64)
    tensor = torch.tensor(codes, dtype=torch.uint8).view(torch.float8_e4m3fn)
    return {key: tensor, f"{key}_scale_inv": torch.tensor(scales)}, values


FORMATS = {
    "nf4": lambda key, seed: four_bit(key, (OUT, WIDE), seed=seed, dtype="bfloat16"),
    "nf4 nested": lambda key, seed: four_bit(key, (OUT, WIDE), seed=seed, nested=True),
    "fp4": lambda key, seed: four_bit(key, (OUT, WIDE), seed=seed, kind="fp4"),
    "int8": lambda key, seed: eight_bit(key.removesuffix(".weight"), (OUT, WIDE), seed),
    "fp8": lambda key, seed: fp8(key, (OUT, WIDE), seed),
}


class Quantised:
    """q_proj with a LoRA and o_proj without, both quantised, beside a plain norm; ``right`` is the float64 merge."""

    def __init__(self, folder: Path, form: str, numbers: Numbers, strength: float = 1.0) -> None:
        self.folder = folder
        self.stored, values = FORMATS[form](f"{Q}.weight", 0)
        others, other_values = FORMATS[form](f"{O_PROJ}.weight", 1)
        if form == "nf4":  # the dtype that it was quantised from
            values, other_values = (exact(torch.tensor(one).to(torch.bfloat16)) for one in (values, other_values))
        self.plain = {"model.norm.weight": numbers(WIDE)}
        settings = {"torch_dtype": "bfloat16", "quantization_config": {"weight_block_size": [16, 16]}}
        self.base = write_base(folder / "base", {**self.stored, **others, **self.plain}, **settings)
        self.others, self.values, self.other_values = others, values, other_values
        lora = pair(numbers, Q, OUT, WIDE)
        lora[f"{Q}.lora_B.weight"] *= strength
        self.adapter, self.delta = write_adapter(folder / "adapter", lora), delta(lora, Q)

    def audit(
        self, q_proj: np.ndarray | torch.Tensor, o_proj: np.ndarray | torch.Tensor, dtype: torch.dtype, **config: object
    ) -> AuditReport:
        """The report on a checkpoint with these two weights."""
        tensors = {
            f"{Q}.weight": torch.as_tensor(q_proj).to(dtype),
            f"{O_PROJ}.weight": torch.as_tensor(o_proj).to(dtype),
        }
        return audit(self.base, self.adapter, write_base(self.folder / "merged", {**tensors, **self.plain}, **config))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merge_into_the_decoded_values(tmp_path: Path, numbers: Numbers, form: str, dtype: torch.dtype) -> None:
    case = Quantised(tmp_path, form, numbers, 0.1)

    right = case.audit(case.values + case.delta, case.other_values, dtype)
    dropped = case.audit(case.values, case.other_values, dtype)
    halved = case.audit(case.values + case.delta / 2, case.other_values, dtype)
    noise = case.audit(case.values + np.random.default_rng(3).standard_normal((OUT, WIDE)), case.other_values, dtype)

    assert right.ok, right.sentence
    assert verdicts(right)[f"{Q}.weight"][0] == "applied"
    assert verdicts(right)[f"{O_PROJ}.weight"] == ("same", None)
    assert set(verdicts(right)) == {f"{Q}.weight", f"{O_PROJ}.weight", "model.norm.weight"}
    assert right.unexpected == ()
    assert verdicts(dropped)[f"{Q}.weight"] == ("untouched", "still the base")
    assert verdicts(halved)[f"{Q}.weight"][0] == "partial"
    assert halved.faults[0].scale == pytest.approx(0.5, abs=5e-3)
    assert verdicts(noise)[f"{Q}.weight"][0] == "wrong"


@pytest.mark.parametrize("form", FORMATS)
def test_a_copy_of_a_quantised_base(tmp_path: Path, numbers: Numbers, form: str) -> None:
    case = Quantised(tmp_path, form, numbers)

    report = audit(case.base, case.adapter, case.base)

    assert verdicts(report) == {
        f"{Q}.weight": ("untouched", "still the base, quantised"),
        f"{O_PROJ}.weight": ("same", None),
        "model.norm.weight": ("same", None),
    }
    assert (report.unexpected, report.config_problems, report.dtype_changes) == ((), (), ())
    assert report.sentence.endswith("→ the whole adapter was dropped: this is the base")


@pytest.mark.parametrize("form", FORMATS)
def test_a_merge_that_was_quantised_again(tmp_path: Path, numbers: Numbers, form: str) -> None:
    """The targeted weight has other codes than the base's; what it decodes to is not looked at."""
    case = Quantised(tmp_path, form, numbers)
    again, _ = FORMATS[form](f"{Q}.weight", 9)

    report = audit(case.base, case.adapter, write_base(tmp_path / "merged", {**again, **case.others, **case.plain}))

    assert verdicts(report)[f"{Q}.weight"][0] == "wrong"
    assert verdicts(report)[f"{O_PROJ}.weight"] == ("same", None)


def test_a_dequantised_weight_that_is_another(tmp_path: Path, numbers: Numbers) -> None:
    case = Quantised(tmp_path, "int8", numbers)
    other = case.other_values.copy()
    other[3, 4] += 0.1

    report = case.audit(case.values + case.delta, other, torch.bfloat16)

    assert verdicts(report)[f"{O_PROJ}.weight"] == ("changed", "not the base's values")


def test_values_that_were_loaded_in_bfloat16_and_merged_in_float32(tmp_path: Path, numbers: Numbers) -> None:
    case = Quantised(tmp_path, "fp8", numbers)
    loaded, other = (torch.tensor(one).bfloat16().double() for one in (case.values, case.other_values))

    report = case.audit(loaded + torch.tensor(case.delta), other, torch.float32)
    dropped = case.audit(loaded, other, torch.float32)

    assert verdicts(dropped)[f"{Q}.weight"] == ("untouched", "still the base")
    assert verdicts(report)[f"{Q}.weight"] == ("applied", "low-precision")
    assert verdicts(report)[f"{O_PROJ}.weight"] == ("same", None)


def test_a_delta_that_is_zero_or_vanishes_in_the_dtype(tmp_path: Path, numbers: Numbers) -> None:
    for number, (strength, detail) in enumerate(((0.0, "zero-delta"), (1e-9, "below-rounding"))):
        case = Quantised(tmp_path / str(number), "fp8", numbers, strength)

        report = case.audit(case.values, case.other_values, torch.bfloat16)

        assert verdicts(report)[f"{Q}.weight"] == ("indistinguishable", detail)
        assert report.ok


def test_a_config_that_still_says_quantised(tmp_path: Path, numbers: Numbers) -> None:
    case = Quantised(tmp_path, "nf4", numbers)

    report = case.audit(
        case.values + case.delta, case.other_values, torch.bfloat16, quantization_config={"load_in_4bit": True}
    )

    assert report.faults == ()
    assert report.exit_code == 1
    assert "quantization_config is still there" in report.config_problems[0]
    assert "config.json and the tensors disagree" in report.sentence


@pytest.mark.parametrize("skipped", [False, True])
def test_mxfp4_experts(tmp_path: Path, numbers: Numbers, *, skipped: bool) -> None:
    blocks, scales, values = mxfp4(2, 32, 12)
    stored = {f"{EXPERTS}.gate_up_proj_blocks": blocks, f"{EXPERTS}.gate_up_proj_scales": scales}
    bias = {f"{EXPERTS}.gate_up_proj_bias": numbers(2, 12)}
    settings = {"model_type": "gpt_oss", "num_local_experts": 2, "torch_dtype": "bfloat16"}
    base = write_base(tmp_path / "b", {**stored, **bias}, quantization_config={"quant_method": "mxfp4"}, **settings)
    first, second = numbers(4, 32), numbers(12, 4)
    lora = {f"{EXPERTS}.lora_A.weight": first, f"{EXPERTS}.lora_B.weight": second}
    adapter = write_adapter(tmp_path / "a", lora, target_modules=None, target_parameters=["experts.gate_up_proj"])
    deltas = np.stack([1.5 * (exact(second)[:, e::2] @ exact(first)[2 * e : 2 * e + 2]).T for e in range(2)])
    if skipped:
        deltas[1] = 0
    right = {f"{EXPERTS}.gate_up_proj": torch.tensor(values + deltas).bfloat16(), **bias}

    report = audit(base, adapter, write_base(tmp_path / "m", right, **settings))
    copy = audit(base, adapter, base)
    row = next(row for row in report.rows if row.key == f"{EXPERTS}.gate_up_proj")

    assert row.verdict == ("untouched" if skipped else "applied")
    assert row.at_fault == ((1,) if skipped else ())
    assert verdicts(report)[f"{EXPERTS}.gate_up_proj_bias"] == ("same", None)
    assert verdicts(copy)[f"{EXPERTS}.gate_up_proj"] == ("untouched", "still the base, quantised")


# --- DoRA -----------------------------------------------------------------------------------------------------------


class Dora:
    """One Linear (or Conv1D, with ``turned``) with DoRA, big enough to tell a bias from noise.

    Everything is (out, in) in float64.
    """

    def __init__(
        self, folder: Path, numbers: Numbers, dtype: torch.dtype, *, turned: bool = False, trained: bool = True
    ) -> None:
        self.folder, self.dtype, self.turned = folder, dtype, turned
        self.key = "h.0.attn.c_attn.weight" if turned else f"{Q}.weight"
        module = "transformer.h.0.attn.c_attn" if turned else Q
        weight = (0.05 * numbers(96, 160)).to(dtype)
        self.weight = weight.double()
        lora = pair(numbers, module, 96, 160)
        lora[f"{module}.lora_B.weight"] *= 0.01 if trained else 0
        self.delta = torch.tensor(delta(lora, module))
        self.sum = self.weight + self.delta
        norms = self.weight.norm(dim=1)
        magnitude = norms * (1 + (0.05 * numbers(96).double() if trained else 0))
        lora[f"{module}.lora_magnitude_vector"] = magnitude.float()
        self.magnitude = magnitude.float().double()
        config = {"model_type": "gpt2"} if turned else {}
        self.base = write_base(folder / "base", {self.key: self._stored(self.weight)}, **config)
        fan = {"fan_in_fan_out": True, "target_modules": ["c_attn"]} if turned else {}
        self.adapter = write_adapter(folder / "adapter", lora, use_dora=True, **fan)

    def _stored(self, values: torch.Tensor) -> torch.Tensor:
        return (values.T if self.turned else values).to(self.dtype)

    def right(self) -> torch.Tensor:
        """Base + delta, each output feature at its magnitude."""
        return self.sum * (self.magnitude / self.sum.norm(dim=1)).unsqueeze(1)

    def verdict(self, values: torch.Tensor) -> tuple[str, str | None]:
        """The verdict on these values in the case's dtype."""
        report = audit(self.base, self.adapter, write_base(self.folder / "merged", {self.key: self._stored(values)}))
        return verdicts(report)[self.key]


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dora(tmp_path: Path, numbers: Numbers, dtype: torch.dtype, *, turned: bool) -> None:
    case = Dora(tmp_path, numbers, dtype, turned=turned)
    right, skipped = case.right(), case.right()
    skipped[7] = case.weight[7]
    opposite = case.weight - case.delta

    assert case.verdict(right)[0] == "applied"
    assert case.verdict(right)[1] in {"bit-exact", "1-ulp"}
    assert case.verdict(case.weight) == ("untouched", "still the base")
    assert case.verdict(case.sum) == ("wrong", "base + delta, not scaled to its magnitude")
    assert case.verdict(case.sum * (case.magnitude / case.weight.norm(dim=1)).unsqueeze(1))[0] == "wrong"
    assert case.verdict(opposite * (case.magnitude / opposite.norm(dim=1)).unsqueeze(1))[0] == "wrong"
    assert case.verdict(case.weight * (case.magnitude / case.weight.norm(dim=1)).unsqueeze(1)) == (
        "wrong", "at its magnitude, in another direction than base + delta",
    )  # fmt: skip
    assert case.verdict(skipped)[0] == "wrong"
    assert case.verdict(torch.full_like(right, torch.nan)) == ("wrong", "holds NaN or infinity")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dora_as_peft_rounds_it(tmp_path: Path, numbers: Numbers, dtype: torch.dtype) -> None:
    """Delta, sum, norm and quotient each rounded to the model's dtype (``DoraLinearVariant.merge_unsafe``)."""
    case = Dora(tmp_path, numbers, dtype)

    def rounded(values: torch.Tensor) -> torch.Tensor:
        return values.to(dtype).double()

    summed = rounded(case.weight + rounded(case.delta))
    factor = rounded(rounded(case.magnitude) / rounded(summed.norm(dim=1)))

    assert case.verdict(rounded(summed * factor.unsqueeze(1)))[0] == "applied"
    assert case.verdict(summed)[0] == "wrong"


@pytest.mark.parametrize("dtype", DTYPES)
def test_dora_that_was_not_trained(tmp_path: Path, numbers: Numbers, dtype: torch.dtype) -> None:
    """The magnitude is the norm, to float32; merged or left alone, nothing can be told."""
    case = Dora(tmp_path, numbers, dtype, trained=False)

    assert case.verdict(case.weight) == ("indistinguishable", "zero-delta")
    assert case.verdict(case.right()) == ("indistinguishable", "zero-delta")
    assert case.verdict(1.1 * case.weight)[0] == "wrong"


def test_dora_on_a_quantised_base(tmp_path: Path, numbers: Numbers) -> None:
    stored, values = four_bit(f"{Q}.weight", (OUT, WIDE), nested=True)
    lora = pair(numbers, Q, OUT, WIDE)
    summed = values + delta(lora, Q)
    lora[f"{Q}.lora_magnitude_vector"] = torch.tensor(np.linalg.norm(values, axis=1)).float() + 0.5
    right = summed * (exact(lora[f"{Q}.lora_magnitude_vector"]) / np.linalg.norm(summed, axis=1))[:, None]
    base = write_base(tmp_path / "b", stored, quantization_config={"load_in_4bit": True})
    adapter = write_adapter(tmp_path / "a", lora, use_dora=True)

    def judged(weight: np.ndarray) -> str:
        merged = write_base(tmp_path / "m", {f"{Q}.weight": torch.tensor(weight).bfloat16()})
        return audit(base, adapter, merged).rows[0].verdict

    assert judged(right) == "applied"
    assert judged(values) == "untouched"
    assert judged(summed) == "wrong"


# --- vocabularies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [VOCABULARY + 2, VOCABULARY - 3])
def test_a_resized_vocabulary(tmp_path: Path, numbers: Numbers, rows: int) -> None:
    tensors, lora = small_base(numbers), pair(numbers, Q, 7, HIDDEN)
    new = {f"{name}.weight": numbers(rows, HIDDEN) for name in (EMBEDDING, HEAD)}
    base = write_base(tmp_path / "b", tensors, vocab_size=VOCABULARY)
    adapter = write_adapter(tmp_path / "a", {**lora, **new})
    q_proj = {f"{Q}.weight": (tensors[f"{Q}.weight"].double() + torch.tensor(delta(lora, Q))).float()}

    def judged(changed: Tensors, size: int = rows) -> AuditReport:
        return audit(
            base, adapter, write_base(tmp_path / "m", {**tensors, **q_proj, **new, **changed}, vocab_size=size)
        )

    right, stale = judged({}), judged({}, VOCABULARY)
    other = judged({f"{HEAD}.weight": numbers(rows, HIDDEN)})
    old = judged({f"{HEAD}.weight": tensors[f"{HEAD}.weight"]})

    assert right.ok
    assert verdicts(right)[f"{EMBEDDING}.weight"] == verdicts(right)[f"{HEAD}.weight"] == ("applied", "bit-exact")
    assert stale.exit_code == 1
    assert stale.config_problems == (f"vocab_size is {VOCABULARY}, and the embeddings have {rows} rows",)
    assert verdicts(other)[f"{HEAD}.weight"][0] == "wrong"
    assert verdicts(old)[f"{HEAD}.weight"] == ("untouched", "still the base, not resized")
    assert audit(base, adapter, base).sentence.endswith("→ the whole adapter was dropped: this is the base")


@pytest.mark.parametrize("rows", [VOCABULARY, VOCABULARY + 2])
def test_a_lora_on_top_of_a_tensor_that_the_adapter_replaces(tmp_path: Path, numbers: Numbers, rows: int) -> None:
    tensors, below = small_base(numbers), numbers(rows, HIDDEN)
    lora = {**pair(numbers, HEAD, rows, HIDDEN), f"{HEAD}.base_layer.weight": below}
    embedding = {f"{EMBEDDING}.weight": numbers(rows, HIDDEN)}
    base = write_base(tmp_path / "b", tensors, vocab_size=VOCABULARY)
    adapter = write_adapter(tmp_path / "a", {**lora, **embedding}, target_modules=[HEAD])
    change = delta(lora, HEAD)

    def judged(head: np.ndarray) -> tuple[str, str | None]:
        merged = {**tensors, **embedding, f"{HEAD}.weight": torch.tensor(head).float()}
        return verdicts(audit(base, adapter, write_base(tmp_path / "m", merged, vocab_size=rows)))[f"{HEAD}.weight"]

    assert judged(exact(below) + change)[0] == "applied"
    assert judged(exact(below)) == ("untouched", "the tensor that the adapter holds, without the delta on top")
    assert judged(exact(below) + change / 2)[0] == "partial"
    assert judged(exact(numbers(rows, HIDDEN)))[0] == "wrong"
    stale = "still the base" if rows == VOCABULARY else "still the base, not resized"
    assert judged(exact(tensors[f"{HEAD}.weight"])) == ("untouched", stale)


def test_a_head_that_is_trained_apart_from_the_embedding_it_was_tied_to(tmp_path: Path, numbers: Numbers) -> None:
    tensors, lora = small_base(numbers, head=False), pair(numbers, HEAD, VOCABULARY, HIDDEN)
    base = write_base(tmp_path / "b", tensors, tie_word_embeddings=True)
    adapter = write_adapter(tmp_path / "a", lora, target_modules=[HEAD])
    head = (tensors[f"{EMBEDDING}.weight"].double() + torch.tensor(delta(lora, HEAD))).float()

    def judged(changed: Tensors, *, tied: bool) -> AuditReport:
        return audit(base, adapter, write_base(tmp_path / "m", {**tensors, **changed}, tie_word_embeddings=tied))

    right = judged({f"{HEAD}.weight": head}, tied=False)
    shared = judged({f"{EMBEDDING}.weight": head}, tied=True)
    still_tied = judged({f"{HEAD}.weight": head}, tied=True)
    names = (f"{EMBEDDING}.weight", f"{HEAD}.weight")

    assert right.ok
    assert [verdicts(right)[name][0] for name in names] == ["same", "applied"]
    assert [verdicts(shared)[name][0] for name in names] == ["changed", "applied"]
    assert still_tied.exit_code == 1
    assert "tie_word_embeddings is true" in still_tied.config_problems[0]
    assert verdicts(audit(base, adapter, base))[f"{HEAD}.weight"][0] == "untouched"


def test_an_embedding_that_is_trained_apart_from_the_head(tmp_path: Path, numbers: Numbers) -> None:
    tensors, trained = small_base(numbers, head=False), numbers(VOCABULARY, HIDDEN)
    base = write_base(tmp_path / "b", tensors, tie_word_embeddings=True)
    lora = {**pair(numbers, Q, 7, HIDDEN), f"{EMBEDDING}.weight": trained}
    adapter = write_adapter(tmp_path / "a", lora, modules_to_save=["embed_tokens"])
    right = {**tensors, f"{EMBEDDING}.weight": trained, f"{HEAD}.weight": tensors[f"{EMBEDDING}.weight"]}
    right[f"{Q}.weight"] = (tensors[f"{Q}.weight"].double() + torch.tensor(delta(lora, Q))).float()
    tied = {key: tensor for key, tensor in right.items() if not key.startswith(HEAD)}

    apart = verdicts(audit(base, adapter, write_base(tmp_path / "m", right)))
    together = verdicts(audit(base, adapter, write_base(tmp_path / "t", tied, tie_word_embeddings=True)))

    assert (apart[f"{EMBEDDING}.weight"][0], apart[f"{HEAD}.weight"][0]) == ("applied", "same")
    assert (together[f"{EMBEDDING}.weight"][0], together[f"{HEAD}.weight"][0]) == ("applied", "changed")


def test_the_report_names_what_config_contradicts(tmp_path: Path, numbers: Numbers) -> None:
    case = Quantised(tmp_path, "int8", numbers)
    merged = case.audit(case.values + case.delta, case.other_values, torch.bfloat16, quantization_config={"x": 1})

    values = json.loads(json.dumps(merged.to_json()))

    assert values["config_problems"] == list(merged.config_problems)
    assert values["ok"] is False
