"""Which files a user of the merged checkpoint will miss.

Libraries write the same things under several names: a chat template in a file of its own or inside
tokenizer_config.json, a vocabulary as tokenizer.json or in the older form it was made from. What counts is whether the
thing is there, not whether a name is.
"""

from __future__ import annotations

from pathlib import Path

from harness.merge.auditing.merged_checkpoint import MergedCheckpoint
from harness.merge.base.checkpoint import CONFIG_FILE, INDEX_FILE, MANIFEST_FILE, Checkpoint
from harness.merge.errors import InputRefusedError
from harness.merge.files.confine import confined
from harness.merge.files.json_file import read_object

NEEDED = (
    CONFIG_FILE, "generation_config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json", "image_processor_config.json",
)  # fmt: skip
"""Files that nothing else stands in for."""

FAST_TOKENIZER = "tokenizer.json"
VOCABULARIES = (
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
"""What a tokenizer is otherwise made of."""
ABSORBED = ("special_tokens_map.json", "added_tokens.json", *VOCABULARIES)
"""Files that tokenizer.json contains; transformers 5 no longer writes the first two beside it."""
TEMPLATES = ("chat_template.jinja", "chat_template.json")
PROCESSORS = frozenset({"preprocessor_config.json", "video_preprocessor_config.json", "image_processor_config.json"})
"""What transformers 5 writes into processor_config.json instead."""


def _has_template(root: Path, files: frozenset[str]) -> bool:
    if files & set(TEMPLATES) or any(name.startswith("additional_chat_templates/") for name in files):
        return True
    if "tokenizer_config.json" not in files:
        return False
    try:
        config = read_object(confined(root, "tokenizer_config.json"), constants=True)
    except InputRefusedError:
        return False  # settings that cannot be read safely hold no template that anybody could use
    return bool(config.get("chat_template"))


def missing_files(base: Checkpoint, merged: MergedCheckpoint) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (what a user will miss, further files of the base that are not there).

    Weights in other formats, index and merge manifest are neither.
    """
    had, has = frozenset(base.files), merged.files
    absent = had - has - {INDEX_FILE, MANIFEST_FILE}
    missing = [
        name for name in NEEDED if name in absent and not (name in PROCESSORS and "processor_config.json" in has)
    ]
    tokenizer = had & {FAST_TOKENIZER, *VOCABULARIES}
    if FAST_TOKENIZER in has:
        absent -= set(ABSORBED)
    elif tokenizer - has:
        missing += sorted(tokenizer - has)
        missing += sorted((had & set(ABSORBED)) - has - tokenizer)
    if _has_template(base.root, had) and not _has_template(merged.root, has):
        missing.append("the chat template")
    # Code that config.json refers to: without it, the model is loaded by other code or not at all.
    missing += sorted(name for name in absent if name.endswith(".py"))
    rest = absent - set(missing) - set(TEMPLATES) - PROCESSORS
    return tuple(missing), tuple(sorted(rest))
