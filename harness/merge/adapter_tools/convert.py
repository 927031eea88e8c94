"""Converting an adapter: read, rewrite, publish by one rename.

The way back is exact. Tensors are permuted, never computed with, and ``conversion.json`` beside them keeps the original
adapter_config.json, which is put back when a conversion returns to where the adapter came from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch

from harness.merge.adapter.adapter import ADAPTER_CONFIG, ADAPTER_FILE, open_adapter
from harness.merge.adapter.keys import classify
from harness.merge.adapter.layout import BPacking, IoLayout
from harness.merge.adapter_tools.rewrite import (
    Group,
    Read,
    Rewrite,
    copied,
    plan_fused,
    plan_repacked,
    plan_unfused,
)
from harness.merge.adapter_tools.settings import encode, record_layout, record_packing, settle_patterns
from harness.merge.adapter_tools.shape import AdapterForm, ExpertForm, read_form
from harness.merge.errors import OutputExistsError, UnsupportedAdapterError, UsageError, listed
from harness.merge.files.any_path import AnyPath
from harness.merge.files.confine import confined, walk_files
from harness.merge.files.copying import copy_file, create, sync, write_at, write_file
from harness.merge.files.json_file import read_object
from harness.merge.files.safetensors_file import DTYPE_BITS, TensorInfo, encode_header, read_range
from harness.merge.publish.publish import publish, working_directory
from harness.merge.publish.target import check_target
from harness.merge.write.tensors import bytes_of, tensor_of

CONVERSION_FILE = "conversion.json"
RANKED = ("F16", "BF16", "F32")
"""Dtypes in the order in which the safetensors library sorts them, the last first."""
LEAVES = (".gate_proj", ".up_proj", ".down_proj")

State = dict[str, str | None]


def _state(form: AdapterForm) -> State:
    return {
        "io_layout": form.io_layout.value if form.io_layout else None,
        "b_packing": form.b_packing.value if form.b_packing else None,
        "experts": form.experts,
    }


def _target(
    form: AdapterForm, to_io_layout: IoLayout | None, to_b_packing: BPacking | None, to_experts: ExpertForm | None
) -> State:
    """Return the state to convert to.

    Raises:
        UsageError: the adapter has nothing that the options are about.
    """
    now = _state(form)
    experts = to_experts or now["experts"]
    if form.experts == "none" and (to_io_layout or to_b_packing or to_experts):
        raise UsageError("the adapter has no LoRA on routed experts: there is no layout to convert.")
    if form.experts == "mixed" and to_experts is not None:
        raise UnsupportedAdapterError("the adapter has LoRA both on fused experts and on single ones.")
    if experts == "per-expert":
        if to_io_layout or to_b_packing:
            raise UsageError("--to-io-layout and --to-b-packing are about fused experts; per-expert ones have neither.")
        return {"io_layout": None, "b_packing": None, "experts": experts}
    return {
        "io_layout": to_io_layout or now["io_layout"] or "standard",
        "b_packing": to_b_packing or now["b_packing"] or "rank_major",
        "experts": experts,
    }


def convert_adapter(
    adapter: AnyPath,
    out: AnyPath,
    *,
    to_io_layout: IoLayout | None = None,
    to_b_packing: BPacking | None = None,
    to_experts: ExpertForm | None = None,
    io_layout: IoLayout | None = None,
    b_packing: BPacking | None = None,
) -> dict[str, object]:
    """Write the same adapter in another layout and return ``{"from": …, "to": …, "notes": […]}``.

    Args:
        adapter: directory of a PEFT LoRA adapter.
        out: the directory to publish; it must not exist.
        to_io_layout: ``swapped`` for PEFT up to 0.19.0, ``standard`` from 0.19.1; by default what it is, or standard
            when it becomes fused.
        to_b_packing: how lora_B should be packed; by default what it is, or rank_major.
        to_experts: ``fused`` (transformers 5) or ``per-expert`` (transformers 4); by default what it is.
        io_layout: settles what the adapter's layout is, where shapes and provenance leave it open.
        b_packing: overrides what the adapter's packing is.

    Raises:
        MergeError: one of its subclasses; then nothing is at ``out``.
    """
    source = open_adapter(Path(adapter))
    form = read_form(source, io_layout=io_layout, b_packing=b_packing)
    wanted = _target(form, to_io_layout, to_b_packing, to_experts)
    _check_convertible(form, wanted)
    try:
        target = check_target(Path(out), overwrite=False, inputs=(source.root,))
    except OutputExistsError as error:
        error.remedy = "Choose another directory, or remove it yourself."  # --overwrite is for checkpoints
        raise
    descriptor = os.open(source.file.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with working_directory(target) as work:
            notes = _write(form, wanted, descriptor, work)
            publish(work, target)
    finally:
        os.close(descriptor)
    return {"from": _state(form), "to": wanted, "notes": notes}


def _check_convertible(form: AdapterForm, wanted: State) -> None:
    """Refuse what the tensors of another layout could not hold.

    Raises:
        UnsupportedAdapterError: names the feature.
    """
    source = form.adapter
    keys = {key: classify(key) for key in source.file.tensors}
    if named := {key.name for key in keys.values() if key.name}:
        raise UnsupportedAdapterError(
            f"the adapter's keys still carry its name ({listed(named)}).",
            "Save it with PEFT's save_pretrained, then convert.",
        )
    if strange := [key for key in keys if source.file.tensors[key].dtype not in RANKED]:
        raise UnsupportedAdapterError(f"these tensors of the adapter are not floating point: {listed(strange)}.")
    if wanted["experts"] != form.experts or form.fused:
        for there, name in ((source.config.use_dora, "use_dora"), (source.config.lora_bias, "lora_bias")):
            if there:
                raise UnsupportedAdapterError(f"the adapter has {name}, which PEFT does not have on fused experts.")
    if wanted["experts"] != form.experts and (whole := [one.path for one in source.full if ".experts." in one.path]):
        raise UnsupportedAdapterError(
            f"the adapter holds whole expert tensors, which are not converted: {listed(whole)}."
        )


def _write(form: AdapterForm, wanted: State, descriptor: int, work: Path) -> list[str]:
    """Write everything into the working directory; return notes."""
    source = form.adapter

    def read(info: TensorInfo) -> torch.Tensor:
        return tensor_of(read_range(descriptor, info.start, info.stop, what=ADAPTER_FILE), info.dtype, info.shape)

    now = _state(form)
    old, new = (now["io_layout"], now["b_packing"]), (wanted["io_layout"], wanted["b_packing"])
    if wanted["experts"] == now["experts"]:
        rewrite: Rewrite = plan_repacked(form, old, new)  # type: ignore[arg-type]  # both are set where anything is fused
        moved = {pair.pair.module for pair in form.fused}
    elif wanted["experts"] == "fused":
        rewrite = plan_fused(form, new, read)  # type: ignore[arg-type]  # both are set for fused experts
        moved = {pair.pair.module for pair in form.linears if pair.expert is not None}
    else:
        rewrite = plan_unfused(form, old)  # type: ignore[arg-type]  # both are set where anything is fused
        moved = {pair.pair.module for pair in form.fused}
    kept = {
        key: info
        for key, info in source.file.tensors.items()
        if (found := classify(key)).role not in {"lora_A", "lora_B"} or found.module not in moved
    }
    groups: list[Group] = [*rewrite.groups, *(copied(key, info) for key, info in kept.items())]
    _write_tensors(groups, form, read, work / ADAPTER_FILE)
    notes = _write_settings(form, wanted, rewrite.wanted, rewrite.fused_names, rewrite.expert_linears, work)
    for relative in walk_files(source.root):
        if relative not in {ADAPTER_CONFIG, ADAPTER_FILE, CONVERSION_FILE}:
            copy_file(confined(source.root, relative), work / relative, what=relative)
    return notes


def _write_tensors(groups: list[Group], form: AdapterForm, read: Read, path: Path) -> None:
    """Write the tensors group by group at their places.

    They lie in the order in which the safetensors library puts them (wider dtypes first, then by name), or, when the
    names stay, in the order they had.
    """
    outputs: dict[str, tuple[str, tuple[int, ...]]] = {}
    for group in groups:
        outputs |= group.outputs
    file = form.adapter.file
    if outputs.keys() == file.tensors.keys():
        order = list(file.tensors)
    else:
        order = sorted(outputs, key=lambda name: (-RANKED.index(outputs[name][0]), name))
    header = encode_header(((name, *outputs[name]) for name in order), file.metadata)
    offsets: dict[str, int] = {}
    position = len(header)
    for name in order:
        offsets[name] = position
        dtype, shape = outputs[name]
        position += prod(shape) * DTYPE_BITS[dtype] // 8
    descriptor = create(path, what=path.name)
    try:
        write_at(descriptor, header, 0, what=path.name)
        for group in groups:
            for name, tensor in group.make(read).items():
                write_at(descriptor, bytes_of(tensor), offsets[name], what=path.name)
        sync(descriptor, what=path.name)
    finally:
        os.close(descriptor)


def _write_settings(
    form: AdapterForm,
    wanted: State,
    ranks: Mapping[str, tuple[int, float]],
    fused_names: list[str],
    expert_linears: list[str],
    work: Path,
) -> list[str]:
    """Write adapter_config.json and conversion.json; return notes."""
    root = form.adapter.root
    text = confined(root, ADAPTER_CONFIG).read_bytes()
    original = {"state": _state(form), "adapter_config": text.decode()}
    if (root / CONVERSION_FILE).exists():
        earlier = read_object(confined(root, CONVERSION_FILE))
        untouched = earlier.get("adapter_config_sha256") == hashlib.sha256(text).hexdigest()
        before = earlier.get("original")
        if untouched and isinstance(before, dict) and isinstance(before.get("adapter_config"), str):
            original = before
            if before.get("state") == wanted:
                write_file(work / ADAPTER_CONFIG, before["adapter_config"].encode())
                return []
    config: dict[str, Any] = dict(json.loads(text))
    notes: list[str] = []
    if wanted == _state(form):
        write_file(work / ADAPTER_CONFIG, text)
        return ["the adapter has this layout already; it was copied"]
    if wanted["experts"] == "fused" and form.experts == "per-expert":
        notes += _target_fused(config, form, fused_names, wanted["io_layout"])
    elif wanted["experts"] == "per-expert" and form.experts == "fused":
        notes += _target_linears(config, form, expert_linears)
    if wanted["io_layout"] is not None:
        record_layout(config, wanted["io_layout"])  # type: ignore[arg-type]  # one of the two layouts
    record_packing(config, wanted["b_packing"])
    if wanted["b_packing"] == "grouped_by_expert":
        notes.append(
            "PEFT ignores lora_B_layout and reads lora_B as rank_major: this adapter is for readers that honour the"
            " marker"
        )
    settle_patterns(config, ranks)
    written = encode(config)
    write_file(work / ADAPTER_CONFIG, written)
    conversion = {
        "version": 1,
        "adapter_config_sha256": hashlib.sha256(written).hexdigest(),
        "state": wanted,
        "original": original,
    }
    write_file(work / CONVERSION_FILE, (json.dumps(conversion, indent=1) + "\n").encode())
    return notes


def _target_fused(config: dict[str, Any], form: AdapterForm, names: list[str], layout: str | None) -> list[str]:
    """Target the fused parameters, and every other module by its full name.

    PEFT from 0.19 on takes targets that end in gate_proj, up_proj or down_proj for experts and rewrites them
    (``peft.utils.transformers_weight_conversion._convert_peft_config_moe``), so the dense Linears of those names are
    targeted as parameters.
    """
    modules, parameters = [], list(names)
    for pair in form.linears:
        if pair.expert is not None:
            continue
        if layout == "standard" and pair.pair.module.endswith(LEAVES):
            parameters.append(f"{pair.pair.module}.weight")
        else:
            modules.append(pair.pair.module)
    config["target_modules"] = sorted(modules) or None
    config["target_parameters"] = sorted(parameters)
    config["exclude_modules"] = None
    notes = []
    for name in ("layers_to_transform", "layers_pattern"):
        config[name] = None
    if config.get("lora_dropout"):
        notes.append("lora_dropout was set to 0: PEFT has none on fused experts (it acts in training only)")
    config["lora_dropout"] = 0.0
    return notes


def _target_linears(config: dict[str, Any], form: AdapterForm, modules: list[str]) -> list[str]:
    """Target the experts' Linears by name, next to what is targeted already."""
    fused = {pair.name for pair in form.fused}
    entries = config.get("target_parameters") or []
    rest = [entry for entry in entries if not any(name == entry or name.endswith(f".{entry}") for name in fused)]
    config["target_parameters"] = rest or None
    targeted = config.get("target_modules")
    if isinstance(targeted, str):
        if targeted != "all-linear":
            alternatives = "|".join(
                sorted({re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(name)) for name in modules})
            )
            config["target_modules"] = f"({targeted})|({alternatives})"
    else:
        config["target_modules"] = sorted({*(targeted or []), *modules})
    if config.get("layers_to_transform") is not None:
        # Full names say which layers; the restriction would be applied to them a second time.
        raise UnsupportedAdapterError("layers_to_transform cannot be kept beside the names of single experts.")
    return []
