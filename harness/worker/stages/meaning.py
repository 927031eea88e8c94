"""Which files beside the weights say the same in other words, asked of the release under test itself.

``save_pretrained`` writes configurations and tokenizer anew: defaults filled in, keys renamed, another version named.
Bytes say nothing then. What a file means is what this release makes of it, so both directories are loaded and compared.
Another release may read the new words otherwise. That is not this cell's question, and the result names every file
rewritten.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.worker.stages.shards import INDEX, IndexUnreadableError, read_index

SINGLE = "model.safetensors"
TOKENIZER_FILES = frozenset({
    "added_tokens.json", "chat_template.jinja", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
})  # fmt: skip
SAYS_WHO_WROTE_IT = frozenset({"transformers_version", "_from_model_config", "_name_or_path"})
"""Keys that tell where a configuration comes from and not what it says."""

BEHAVIOUR = (
    "added_tokens_decoder", "all_special_ids", "all_special_tokens", "chat_template", "clean_up_tokenization_spaces",
    "model_input_names", "model_max_length", "padding_side", "special_tokens_map", "split_special_tokens",
    "truncation_side",
)  # fmt: skip
"""Attributes of a loaded tokenizer that decide what it does beside its rules."""
SEEN_LOADED = frozenset({
    *BEHAVIOUR, "additional_special_tokens", "bos_token", "eos_token", "extra_special_tokens", "pad_token",
    "tokenizer_class", "unk_token",
})  # fmt: skip
"""Settings of tokenizer_config.json that are compared as the release reads them: it may leave them out."""
SAYS_HOW_IT_WAS_LOADED = frozenset({"backend", "is_local", "local_files_only", "name_or_path"})
"""Settings of tokenizer_config.json, as transformers 5.5.0 to 5.23.0 adds them, that no loader acts upon."""


def same_in_other_words(base: Path, merged: Path, configure: Callable[[dict[str, Any]], None]) -> set[str]:
    """Return the names of files beside the weights that differ without saying anything else.

    To differ is to be changed, absent or added.

    Args:
        base: the base's directory.
        merged: the merge's.
        configure: changes what the base's config.json means to what a right merge's must.
    """
    groups: tuple[tuple[frozenset[str], Callable[[Path], Any]], ...] = (
        (frozenset({"config.json"}), _config),
        (frozenset({"generation_config.json"}), _generation),
        (TOKENIZER_FILES, _tokenizer),
    )
    same: set[str] = set()
    for names, meaning in groups:
        different = {name for name in names if content(base / name) != content(merged / name)}
        if different:
            ours = meaning(base)
            if meaning is _config:
                configure(ours)
            same |= different if _said(meaning, merged) == ours else set()
    return same | _weights(base, merged)


def content(path: Path) -> bytes | None:
    """Return the bytes of a file; None where there is none of that name, or something else than a file."""
    return path.read_bytes() if path.is_file() else None


def _said(meaning: Callable[[Path], Any], directory: Path) -> Any:
    """Return what a merged directory means, or the error in which reading it ended. No base means such an error.

    Any error is meant: what a release raises on a broken file is its own affair (``tokenizers`` raises ``Exception``
    itself). A fault of this module cannot hide here, because the base is read first, by the same function.
    """
    try:
        return meaning(directory)
    except Exception as error:  # noqa: BLE001 — see above
        print(f"    {directory.name} cannot be read: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return error


def _config(directory: Path) -> dict[str, Any]:
    from transformers import AutoConfig

    return _without_writer(AutoConfig.from_pretrained(directory).to_dict())


def _generation(directory: Path) -> dict[str, Any]:
    from transformers import GenerationConfig

    return _without_writer(GenerationConfig.from_pretrained(directory).to_dict())


def _without_writer(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_writer(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if name not in SAYS_WHO_WROTE_IT
    }


def _tokenizer(directory: Path) -> dict[str, Any]:
    """Return what a tokenizer does: its class, its rules, its behaviour, and every setting that is not known here.

    A setting that is not known must be the same in both. AutoTokenizer may act upon it, as it does upon ``auto_map``.

    Raises:
        ValueError: the settings name a class that this release does not have.
    """
    import transformers

    settings = json.loads((directory / "tokenizer_config.json").read_text())
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
    name = settings.get("tokenizer_class")
    if name is not None and not hasattr(transformers, name):
        raise ValueError(f"transformers {transformers.__version__} has no tokenizer class {name!r}")
    return {
        # Two names may be one class: PreTrainedTokenizerFast and TokenizersBackend are in transformers 5.
        "class": name and getattr(transformers, name),
        "rules": json.loads(tokenizer.backend_tokenizer.to_str()),
        "behaviour": {name: getattr(tokenizer, name) for name in BEHAVIOUR},
        "settings": {
            name: value for name, value in settings.items() if name not in SEEN_LOADED | SAYS_HOW_IT_WAS_LOADED
        },
    }


def _weights(base: Path, merged: Path) -> set[str]:
    """Return index and shards that are cut otherwise.

    That is where the weights lie as a loader looks for them, and nowhere else.
    A loader reads ``model.safetensors`` where there is one, else what the index names. The index itself is judged
    elsewhere.
    """
    ours, theirs = ({path.name for path in place.glob("*.safetensors")} for place in (base, merged))
    try:
        index = read_index(merged)
    except IndexUnreadableError:
        return set()  # it does not say where the weights lie, and the tensor gate names it
    named = None if index is None else set(index[0].values())
    if theirs != (named or {SINGLE}) or (named is not None and SINGLE in named):
        return set()
    return (ours ^ theirs) | ({INDEX} if (base / INDEX).exists() != (merged / INDEX).exists() else set())
