"""Which files beside the weights say the same in other words, asked of the release under test itself.

``save_pretrained`` writes configurations and tokenizer anew: defaults filled in, keys renamed, another version named.
Bytes say nothing then. What a file means is what this release makes of it, so both directories are loaded and compared.
Another release may read the new words otherwise. That is not this cell's question, and the result names every file
rewritten.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TOKENIZER_FILES = frozenset({
    "added_tokens.json", "chat_template.jinja", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
})  # fmt: skip
SAYS_WHO_WROTE_IT = frozenset({"transformers_version", "_from_model_config", "_name_or_path"})
"""Keys that tell where a configuration comes from and not what it says."""

PROBE = "<bos> t9 t50 unheard-of <eos>t4"
"""A text of this harness's own vocabulary, with special tokens and a word that is not in it."""
CHAT = [{"role": "t5", "content": "t6 t7"}]


def same_in_other_words(base: Path, merged: Path) -> set[str]:
    """Return the names of files beside the weights that differ without saying anything else.

    To differ is to be changed, absent or added.
    """
    groups: tuple[tuple[frozenset[str], Callable[[Path], Any]], ...] = (
        (frozenset({"config.json"}), _config),
        (frozenset({"generation_config.json"}), _generation),
        (TOKENIZER_FILES, _tokenizer),
    )
    same: set[str] = set()
    for names, meaning in groups:
        different = {name for name in names if _content(base / name) != _content(merged / name)}
        if different and _said(meaning, merged) == meaning(base):
            same |= different
    return same | _weights(base, merged)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _said(meaning: Callable[[Path], Any], directory: Path) -> Any:
    """Return what a merged directory means, or the error in which reading it ended. No base means such an error."""
    try:
        return meaning(directory)
    except (OSError, ValueError, KeyError, TypeError) as error:  # a file that is absent or not what it should be
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
    """Return what a tokenizer does: its vocabulary and rules, its special tokens, a text and a chat put through it."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    return {
        "vocabulary": tokenizer.get_vocab(),
        "rules": {name: rules[name] for name in ("normalizer", "pre_tokenizer", "decoder", "added_tokens")},
        "special": tokenizer.special_tokens_map,
        "longest": tokenizer.model_max_length,
        "ids": tokenizer(PROBE)["input_ids"],
        "text": tokenizer.decode(tokenizer(PROBE)["input_ids"]),
        "chat": tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True),
    }


def _weights(base: Path, merged: Path) -> set[str]:
    """Return index and shards that are cut otherwise.

    That is where the weights lie as a loader looks for them, and nowhere else.
    A loader reads ``model.safetensors`` where there is one, else what the index names. The index itself is judged
    elsewhere.
    """
    ours, theirs = ({path.name for path in place.glob("*.safetensors")} for place in (base, merged))
    named = set(json.loads((merged / INDEX).read_text())["weight_map"].values()) if (merged / INDEX).exists() else None
    if theirs != (named or {SINGLE}) or (named is not None and SINGLE in named):
        return set()
    return (ours ^ theirs) | ({INDEX} if (base / INDEX).exists() != (merged / INDEX).exists() else set())
