"""A seed with mutations, written to disk: settings, index, headers, tensors moved between shards, and entries that are
no plain files.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from pathlib import Path
from random import Random
from typing import Any

from hostile_json import PATTERNS, encode, hostile, mutate_text, mutate_value
from hostile_samples import Seed
from hostile_tensors import mutate_file, pack, unpack

INDEX = "model.safetensors.index.json"
Files = dict[str, bytes]
UNPARSEABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, struct.error)
"""What a mutation meets in a file that an earlier one has broken already: then the first stands alone."""


def mutate(random: Random, files: Files, path: str) -> None:
    """Change one file in place."""
    data = files[path]
    if path.endswith(".safetensors"):
        files[path] = mutate_file(random, data)
    elif path.endswith(".json") and random.random() < 0.9:
        files[path] = encode(_mutated_settings(random, path, json.loads(data)))
    else:
        files[path] = mutate_text(random, data)


ADAPTER_SETTINGS = (
    "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "target_parameters", "layers_to_transform",
    "trainable_token_indices",
    "modules_to_save", "bias", "use_dora", "lora_bias", "fan_in_fan_out", "peft_version", "lora_B_layout", "r",
    "lora_alpha", "use_rslora",
    "init_lora_weights", "peft_type",
)  # fmt: skip
BASE_SETTINGS = (
    "model_type", "num_hidden_layers", "num_experts", "n_routed_experts", "num_local_experts", "tie_word_embeddings",
    "torch_dtype", "dtype",
    "text_config", "quantization_config",
)  # fmt: skip
SHARD_NAMES = (
    "../base/model.safetensors", "/dev/zero", ".", "", "model-00001-of-00002.safetensors", "config.json",
    "x.safetensors", "a/b.safetensors",
    "\ud800.safetensors", "x" * 300 + ".safetensors", "a\x00.safetensors", None, 1, [], "tokenizer.json",
    "MODEL.safetensors", "..\\x.safetensors",
)  # fmt: skip
SIDES = (1, 3, 4, 10**9, 2**62, 2**64, 10**40)


def _mutated_settings(random: Random, path: str, value: Any) -> Any:
    """Change a JSON file: anything anywhere, or what its readers look at."""
    name = path.rpartition("/")[2]
    if random.random() < 0.6:
        return mutate_value(random, value)
    if name == "adapter_config.json":
        setting = random.choice(ADAPTER_SETTINGS)
        value[setting] = _pattern_setting(random, setting) if random.random() < 0.6 else hostile(random)
    elif name == "config.json":
        setting = random.choice(BASE_SETTINGS)
        blocks = {"quant_method": "fp8", "weight_block_size": [random.choice(SIDES), random.choice(SIDES)]}
        found = blocks if setting == "quantization_config" and random.random() < 0.7 else hostile(random)
        value[setting] = {**value, random.choice(BASE_SETTINGS): found} if setting == "text_config" else found
    elif name == INDEX:
        value["weight_map"][random.choice(list(value["weight_map"]))] = random.choice(SHARD_NAMES)
    return value


def _pattern_setting(random: Random, setting: str) -> Any:
    """Return regular expressions where a setting takes them, and anything where it does not."""
    if setting in {"rank_pattern", "alpha_pattern"}:
        return {random.choice(PATTERNS): random.choice((1, 2, 3, 0.5)) for _ in range(random.randrange(1, 4))}
    return random.choice(PATTERNS) if setting in {"target_modules", "exclude_modules"} else hostile(random)


def _moved(random: Random, files: Files) -> None:
    """Move or copy a tensor into another shard, with or without telling the index."""
    shards = [path for path in files if path.endswith(".safetensors") and path.startswith("base/")]
    source, target = random.choice(shards), random.choice(shards)
    with contextlib.suppress(*UNPARSEABLE):
        (tensors, metadata), (others, more) = unpack(files[source]), unpack(files[target])
        taken = random.choice(tensors)
        if source != target and random.random() < 0.6:
            files[source] = pack([tensor for tensor in tensors if tensor is not taken], metadata)
        files[target] = pack([*others, taken], more)
        if f"base/{INDEX}" in files and random.random() < 0.7:
            index = json.loads(files[f"base/{INDEX}"])
            index["weight_map"][taken.name] = target.removeprefix("base/")
            files[f"base/{INDEX}"] = json.dumps(index).encode()


def _directory(place: Path, _random: Random) -> None:
    place.unlink()
    place.mkdir()
    (place / "inside").write_bytes(b"{}")


def _link(place: Path, random: Random) -> None:
    place.unlink()
    place.symlink_to(random.choice(("/dev/zero", "/etc/passwd", "/proc/self/mem", place.name, "../outside", "nowhere")))


def _pipe(place: Path, _random: Random) -> None:
    place.unlink()
    os.mkfifo(place)


def _gone(place: Path, random: Random) -> None:
    place.unlink() if random.random() < 0.5 else place.write_bytes(b"")


def _odd_name(place: Path, random: Random) -> None:
    name = random.choice((b"\xff.txt", b"\xff.bin", b"a\nb", b"\x1b[31m.bin"))
    Path(os.fsdecode(os.fsencode(place.parent) + b"/" + name)).write_bytes(b"x")


def _deep(place: Path, random: Random) -> None:
    folder = str(place.parent)
    with contextlib.suppress(OSError):
        for _ in range(random.choice((20, 60, 1500))):
            folder += "/d"
            os.mkdir(folder)  # noqa: PTH102 - pathlib itself gives up on such paths


def _neighbour(place: Path, random: Random) -> None:
    name = random.choice(
        (
            "conversion.json",
            "pytorch_model.bin",
            "extra.safetensors",
            "merge_manifest.json",
            "tokenizer_config.json",
            "config.json",
        )
    )
    content = random.choice(
        (b"", b"{}", b"\x80\x04.", b"[" * 100_000, b'{"chat_template":' * 900, encode(hostile(random)))
    )
    (place.parent / name).write_bytes(content)


def _linked_directory(place: Path, _random: Random) -> None:
    place.parent.joinpath("linked").symlink_to("..")


STRANGE = (_directory, _link, _link, _pipe, _gone, _odd_name, _deep, _neighbour, _neighbour, _linked_directory)
"""Something that is no plain file where a file was, or something strange beside it."""


def prepare(random: Random, seed: Seed, folder: Path) -> tuple[str, ...]:
    """Write a seed with one to three mutations; return the mutated paths."""
    files = dict(seed.files)
    merged = random.random() < 0.5
    count = random.choice((1, 1, 2, 3))
    paths = [path for path in files if not path.startswith("merged/") or merged]
    weights = [_interest(path) for path in paths]
    touched = random.choices(paths, weights, k=count)
    for path in touched:
        with contextlib.suppress(*UNPARSEABLE):
            mutate(random, files, path)
    if random.random() < 0.06:
        _moved(random, files)
        touched.append("moved")
    for path, data in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    if random.random() < 0.06:
        path = random.choice(touched)
        random.choice(STRANGE)(folder / (path if path in files else paths[0]), random)
        touched.append("strange entry")
    return tuple(touched)


def _interest(path: str) -> float:
    """How often a file is mutated, compared with others: headers, index and settings, not tokenizers."""
    name = path.rpartition("/")[2]
    if name == "adapter_config.json":
        return 5
    if name in {"config.json", INDEX, "adapter_model.safetensors"}:
        return 4
    return 3 if name.endswith(".safetensors") else 0.3 if name.endswith(".json") else 0.05
