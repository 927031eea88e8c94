"""Small checkpoints and adapters for the merge tests, with the merged values worked out from the definition.

An adapter is made from logical factors, per expert ``a`` (r, in) and ``b`` (out, r), whose delta is ``scaling * b @ a``
by plain loops in float64; only then are they packed into PEFT's flat layouts, element by element. Nothing here uses the
engine.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from quantised_samples import SETTINGS, can_quantise, quantise
from safetensors.torch import load_file, save_file

TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MEMORY = Path("/dev/shm")  # noqa: S108 - private folders are made in it
QUICK = MEMORY if MEMORY.is_dir() else None
"""A folder where fsync costs nothing, for tests that merge hundreds of times; None for the default."""
MANTISSA = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}
SMALLEST_EXPONENT = {torch.float32: -126, torch.bfloat16: -126, torch.float16: -14}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What to build. ``disk`` is how the base stores experts, ``memory`` how the adapter saw them.

    ``family``: ``plain``, ``mixtral`` (other names on disk) or ``gpt_oss`` (fused experts the other way round).
    ``base_format``: how most of the base's matrices are stored, one of ``quantised_samples.FORMATS``; ``dtype`` is then
    what config.json names.
    """

    experts: int = 4
    rank: int = 2
    hidden: int = 6
    width: int = 5
    layers: int = 2
    dense_layers: int = 0
    shards: int = 3
    dtype: str = "float32"
    disk: str = "per_expert"
    memory: str = "fused"
    disk_prefix: str = "model."
    memory_prefix: str = "model."
    parameters: tuple[str, ...] = ("gate_up_proj", "down_proj")
    io_layout: str = "standard"
    b_packing: str = "rank_major"
    nested: str = "gate_up_proj"
    attention: bool = True
    shared: bool = True
    router: bool = False
    alpha: float = 3
    use_rslora: bool = False
    gate_up_rank: int | None = None
    gate_up_alpha: float | None = None
    peft_version: str | None = "0.19.1"
    marker: str | None = None
    zero_experts: tuple[int, ...] = ()
    strength: float = 1.0
    seed: int = 0
    family: str = "plain"
    base_format: str = "plain"


@dataclass
class Sample:
    """A base and an adapter on disk.

    ``deltas`` holds the exact float64 delta of every on-disk tensor that should change.
    """

    base: Path
    adapter: Path
    tensors: dict[str, torch.Tensor]
    deltas: dict[str, np.ndarray] = field(default_factory=dict)
    adapter_tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    config: dict[str, object] = field(default_factory=dict)
    decoded: dict[str, torch.dtype] = field(default_factory=dict)
    """Weights that are stored quantised, and the dtype they are to be written in.

    ``tensors`` holds their values in float64.
    """

    def save_adapter(self) -> None:
        """Write ``adapter_tensors`` and ``config`` (again, after a test has changed them)."""
        self.adapter.mkdir(exist_ok=True)
        save_file(self.adapter_tensors, self.adapter / "adapter_model.safetensors")
        (self.adapter / "adapter_config.json").write_text(json.dumps(self.config))


def product(b: np.ndarray, a: np.ndarray, scaling: float) -> np.ndarray:
    """``scaling * b @ a`` in float64, one rank at a time. b (out, r), a (r, in)."""
    total = np.zeros((b.shape[0], a.shape[1]))
    for rank in range(a.shape[0]):
        total += np.outer(b[:, rank], a[rank])
    return scaling * total


def pack(
    a: list[np.ndarray], b: list[np.ndarray], *, io_layout: str, b_packing: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack per-expert factors into PEFT's flat lora_A and lora_B, element by element."""
    count, rank = len(a), a[0].shape[0]
    rows = [[(b[e][:, k] if io_layout == "swapped" else a[e][k]) for k in range(rank)] for e in range(count)]
    columns = [[(a[e][k] if io_layout == "swapped" else b[e][:, k]) for k in range(rank)] for e in range(count)]
    flat_a = np.zeros((count * rank, rows[0][0].size))
    flat_b = np.zeros((columns[0][0].size, count * rank))
    for e in range(count):
        for k in range(rank):
            flat_a[e * rank + k] = rows[e][k]
            flat_b[:, (k * count + e) if b_packing == "rank_major" else (e * rank + k)] = columns[e][k]
    return torch.tensor(flat_a, dtype=torch.float32), torch.tensor(flat_b, dtype=torch.float32)


class _Builder:
    def __init__(self, spec: Spec, folder: Path) -> None:
        self.spec = spec
        self.random = np.random.default_rng(spec.seed)
        self.sample = Sample(base=folder / "base", adapter=folder / "adapter", tensors={})

    def weight(self, key: str, *shape: int, dtype: str | None = None) -> None:
        values = self.random.standard_normal(shape)
        self.sample.tensors[key] = torch.tensor(values, dtype=TORCH[dtype or self.spec.dtype])

    def factors(self, rank: int, out: int, wide: int) -> tuple[np.ndarray, np.ndarray]:
        """Factors exact in float32, so that what is stored is what the oracle uses."""
        a = self.random.standard_normal((rank, wide)).astype(np.float32).astype(np.float64)
        b = (self.spec.strength * self.random.standard_normal((out, rank))).astype(np.float32).astype(np.float64)
        return a, b

    def scaling(self, rank: int, alpha: float) -> float:
        return alpha / rank**0.5 if self.spec.use_rslora else alpha / rank

    def store(self, module: str, a: torch.Tensor, b: torch.Tensor) -> None:
        self.sample.adapter_tensors[f"base_model.model.{module}.lora_A.weight"] = a.contiguous()
        self.sample.adapter_tensors[f"base_model.model.{module}.lora_B.weight"] = b.contiguous()

    def linear(self, stem: str, out: int, wide: int, *, adapted: bool, delta_key: str | None = None) -> np.ndarray:
        """A LoRA on the Linear ``stem``; returns its delta and files it under the Linear's own key."""
        a, b = self.factors(self.spec.rank, out, wide)
        delta = product(b, a, self.scaling(self.spec.rank, self.spec.alpha))
        if adapted:
            self.store(self.spec.memory_prefix + stem, torch.tensor(a).float(), torch.tensor(b).float())
            self.sample.deltas[delta_key or f"{self.spec.disk_prefix}{stem}.weight"] = delta
        return delta

    def mlp(self, stem: str, width: int, *, adapted: bool) -> None:
        hidden = self.spec.hidden
        for leaf, out, wide in (("gate_proj", width, hidden), ("up_proj", width, hidden), ("down_proj", hidden, width)):
            self.weight(f"{self.spec.disk_prefix}{stem}.{leaf}.weight", out, wide)
            self.linear(f"{stem}.{leaf}", out, wide, adapted=adapted)

    def experts(self, stem: str, *, adapted: bool) -> None:
        spec = self.spec
        shapes = {"gate_up_proj": (2 * spec.width, spec.hidden), "down_proj": (spec.hidden, spec.width)}
        for parameter, (out, wide) in shapes.items():
            self.expert_weights(stem, parameter, out, wide)
            if adapted and parameter in spec.parameters:
                if spec.memory == "fused":
                    deltas = self.fused_pair(stem, parameter, out, wide)
                else:
                    deltas = self.linear_pairs(stem, parameter, out, wide)
                self.expert_deltas(stem, parameter, deltas)

    def expert_weights(self, stem: str, parameter: str, out: int, wide: int) -> None:
        prefix = self.on_disk(stem)
        if self.spec.disk == "fused":
            shape = (wide, out) if self.spec.family == "gpt_oss" else (out, wide)
            self.weight(f"{prefix}.{parameter}", self.spec.experts, *shape)
            return
        for e in range(self.spec.experts):
            for leaf in leaves(parameter):
                self.weight(f"{prefix}.{e}.{self.leaf(leaf)}.weight", out // len(leaves(parameter)), wide)

    def on_disk(self, stem: str) -> str:
        """The path of an experts module in the files."""
        path = stem.replace(".mlp.experts", ".block_sparse_moe.experts") if self.spec.family == "mixtral" else stem
        return self.spec.disk_prefix + path

    def leaf(self, leaf: str) -> str:
        """What an expert's Linear is called in the files."""
        names = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"} if self.spec.family == "mixtral" else {}
        return names.get(leaf, leaf)

    def fused_pair(self, stem: str, parameter: str, out: int, wide: int) -> list[np.ndarray]:
        spec = self.spec
        rank, alpha = spec.rank, spec.alpha
        if parameter == "gate_up_proj":
            rank, alpha = spec.gate_up_rank or rank, spec.gate_up_alpha or alpha
        pairs = [self.factors(rank, out, wide) for _ in range(spec.experts)]
        for e in spec.zero_experts:
            pairs[e][1][:] = 0
        flat_a, flat_b = pack(
            [a for a, _ in pairs], [b for _, b in pairs], io_layout=spec.io_layout, b_packing=spec.b_packing
        )
        inner = len(spec.parameters) > 1 and parameter == spec.nested
        self.store(f"{spec.memory_prefix}{stem}{'.base_layer' if inner else ''}", flat_a, flat_b)
        return [product(b, a, self.scaling(rank, alpha)) for a, b in pairs]

    def linear_pairs(self, stem: str, parameter: str, out: int, wide: int) -> list[np.ndarray]:
        parts = leaves(parameter)
        deltas = []
        for e in range(self.spec.experts):
            each = []
            for leaf in parts:
                key = f"{self.spec.disk_prefix}{stem}.{e}.{leaf}.weight"
                each.append(self.linear(f"{stem}.{e}.{leaf}", out // len(parts), wide, adapted=True, delta_key=key))
                del self.sample.deltas[key]
            deltas.append(np.concatenate(each))
        return deltas

    def expert_deltas(self, stem: str, parameter: str, deltas: list[np.ndarray]) -> None:
        prefix = self.on_disk(stem)
        if self.spec.disk == "fused":
            turned = self.spec.family == "gpt_oss"
            self.sample.deltas[f"{prefix}.{parameter}"] = np.stack([delta.T if turned else delta for delta in deltas])
            return
        parts = leaves(parameter)
        for e, delta in enumerate(deltas):
            rows = delta.shape[0] // len(parts)
            for i, leaf in enumerate(parts):
                self.sample.deltas[f"{prefix}.{e}.{self.leaf(leaf)}.weight"] = delta[i * rows : (i + 1) * rows]

    def layer(self, number: int, *, adapted: bool) -> None:
        spec, stem = self.spec, f"layers.{number}"
        self.weight(f"{spec.disk_prefix}{stem}.input_layernorm.weight", spec.hidden)
        for leaf, out in (("q_proj", spec.hidden + 1), ("kv_a_proj_with_mqa", spec.hidden - 1)):
            self.weight(f"{spec.disk_prefix}{stem}.self_attn.{leaf}.weight", out, spec.hidden)
            if leaf == "q_proj":
                self.linear(f"{stem}.self_attn.{leaf}", out, spec.hidden, adapted=adapted and spec.attention)
        if number < spec.dense_layers:
            self.mlp(f"{stem}.mlp", spec.width + 3, adapted=adapted and spec.shared)
            return
        self.weight(f"{spec.disk_prefix}{stem}.mlp.gate.weight", spec.experts, spec.hidden)
        self.linear(f"{stem}.mlp.gate", spec.experts, spec.hidden, adapted=adapted and spec.router)
        self.weight(f"{spec.disk_prefix}{stem}.mlp.gate.e_score_correction_bias", spec.experts, dtype="float32")
        self.mlp(f"{stem}.mlp.shared_experts", spec.width + 1, adapted=adapted and spec.shared)
        self.experts(f"{stem}.mlp.experts", adapted=adapted)

    def build(self) -> Sample:
        spec = self.spec
        self.weight(f"{spec.disk_prefix}embed_tokens.weight", 11, spec.hidden)
        for number in range(spec.layers):
            self.layer(number, adapted=True)
        self.layer(spec.layers, adapted=False)  # a multi-token-prediction layer, as deepseek_v3 and glm4_moe publish it
        self.weight("mtp.layers.0.self_attn.q_proj.weight", spec.hidden + 1, spec.hidden)
        self.weight(f"{spec.disk_prefix}norm.weight", spec.hidden)
        self.weight("lm_head.weight", 11, spec.hidden)
        stored, settings = self.quantised()
        write_base(self.sample.base, stored, spec, **settings)
        self.sample.config = adapter_config(spec)
        self.sample.save_adapter()
        return self.sample

    def quantised(self) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        """Return what the files hold and what config.json says of it.

        Most of the decoder's matrices are replaced by quantised ones.
        """
        spec, sample = self.spec, self.sample
        if spec.base_format == "plain":
            return sample.tensors, {}
        stored = dict(sample.tensors)
        fitting = [
            key
            for key, value in stored.items()
            if "layers." in key and can_quantise(spec.base_format, key, value.shape)
        ]
        chosen = [key for key in fitting if self.random.random() < 0.7] or fitting[:1]
        for key in chosen:
            parts, values = quantise(
                spec.base_format, key, tuple(stored.pop(key).shape), seed=int(self.random.integers(2**31))
            )
            stored |= parts
            sample.tensors[key] = torch.tensor(values, dtype=torch.float64)
            sample.decoded[key] = TORCH[spec.dtype]
        return stored, {"quantization_config": SETTINGS[spec.base_format]}


def leaves(parameter: str) -> tuple[str, ...]:
    return ("gate_proj", "up_proj") if parameter == "gate_up_proj" else ("down_proj",)


def adapter_config(spec: Spec) -> dict[str, object]:
    """adapter_config.json as PEFT writes it, the settings that matter and a few that do not."""
    modules = (["q_proj"] if spec.attention else []) + (["gate"] if spec.router else [])
    if spec.shared:
        modules += [f"shared_experts.{leaf}" for leaf in ("gate_proj", "up_proj", "down_proj")]
        modules += [f"mlp.{leaf}" for leaf in ("gate_proj", "up_proj", "down_proj")]
    parameters: list[str] | None = None
    if spec.memory == "fused":
        parameters = [f"mlp.experts.{name}" for name in spec.parameters]
    else:
        modules += [
            f"experts.{e}.{leaf}" for e in range(spec.experts) for name in spec.parameters for leaf in leaves(name)
        ]
    config: dict[str, object] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "bias": "none",
        "r": spec.rank, "lora_alpha": spec.alpha, "lora_dropout": 0.0, "use_rslora": spec.use_rslora, "use_dora": False,
        "rank_pattern": {}, "alpha_pattern": {}, "target_modules": modules, "target_parameters": parameters,
        "fan_in_fan_out": False, "init_lora_weights": True, "modules_to_save": None, "inference_mode": True,
    }  # fmt: skip
    if spec.gate_up_rank is not None:
        config["rank_pattern"] = {r".*\.gate_up_proj": spec.gate_up_rank}
    if spec.gate_up_alpha is not None:
        config["alpha_pattern"] = {"experts.gate_up_proj": spec.gate_up_alpha}
    if spec.peft_version is not None:
        config["peft_version"] = spec.peft_version
    if spec.marker is not None:
        config["lora_B_layout"] = spec.marker
    return config


def write_base(folder: Path, tensors: Mapping[str, torch.Tensor], spec: Spec, **settings: object) -> None:
    """Write tensors round robin over shards, so that experts and their halves are torn apart, with the usual other
    files.
    """
    folder.mkdir(parents=True)
    if spec.shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    else:
        names = [f"model-{i + 1:05d}-of-{spec.shards:05d}.safetensors" for i in range(spec.shards)]
        weight_map = {key: names[i % spec.shards] for i, key in enumerate(tensors)}
        for name in names:
            part = {key: tensor for key, tensor in tensors.items() if weight_map[key] == name}
            save_file(part, folder / name, metadata={"format": "pt"})
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "model_type": "made_up" if spec.family == "plain" else spec.family, "num_hidden_layers": spec.layers,
        "n_routed_experts": spec.experts,
        "torch_dtype": spec.dtype, "tie_word_embeddings": False, **settings,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    (folder / "generation_config.json").write_text('{"temperature": 0.6}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "assets").mkdir()
    (folder / "assets" / "note.txt").write_text("kept")


def build(folder: Path, spec: Spec | None = None) -> Sample:
    """Write a base and an adapter below ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    return _Builder(spec or Spec(), folder).build()


def load(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint directory, by the safetensors library."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def assert_merged(sample: Sample, out: Path, *, dtype: torch.dtype | None = None) -> None:
    """Assert that ``out`` holds base + delta, rounded once, in every tensor, and the base's own bytes in all others."""
    merged = load(out)

    assert merged.keys() == sample.tensors.keys()
    for key, tensor in merged.items():
        base = sample.tensors[key]
        if key not in sample.deltas and key not in sample.decoded:
            assert torch.equal(bits(tensor), bits(base)), key
            assert tensor.dtype == base.dtype, key
            continue
        assert tensor.dtype == (dtype or sample.decoded.get(key, base.dtype)), key
        delta = sample.deltas.get(key, np.zeros(1))
        exact = base.double().numpy() + delta
        scale = np.abs(base.double().numpy()) + np.abs(delta).max()
        exponent = np.maximum(np.floor(np.log2(np.abs(exact) + 1e-300)), SMALLEST_EXPONENT[tensor.dtype])
        half_ulp = 2.0 ** (exponent - MANTISSA[tensor.dtype] - 1)
        # Half a unit for the one rounding, and the error of a short float32 sum before it.
        band = half_ulp * (1 + 1e-3) + scale * 2.0**-21
        assert (np.abs(tensor.double().numpy() - exact) <= band).all(), key


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


def write_safetensors(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> None:
    """Write a file with exactly this header, however wrong it is."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
