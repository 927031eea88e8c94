"""A tokenizer that is built here: a word-level one and a chat template.

Its words are ``t4`` …, beside four special tokens. All files are literal JSON and text, so their bytes do not depend on
a library. Every id below the vocabulary's size is a token. Training and evaluation work on ids. The tokenizer is there
because real repositories have one and merges must keep it.
"""

from __future__ import annotations

import json

PAD, EOS, BOS, UNK = 0, 1, 2, 3
SPECIAL = {"<pad>": PAD, "<eos>": EOS, "<bos>": BOS, "<unk>": UNK}

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<bos> ' + message['role'] + ' ' + message['content'] + ' <eos> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<bos> assistant ' }}{% endif %}\n"
)


def tokenizer_files(vocab_size: int) -> dict[str, bytes]:
    """Return file name to content.

    The files are tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja.
    """
    vocab = SPECIAL | {f"t{i}": i for i in range(len(SPECIAL), vocab_size)}
    added = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token, i in SPECIAL.items()
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    }
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
    }
    return {
        "chat_template.jinja": CHAT_TEMPLATE.encode(),
        "special_tokens_map.json": _json(special),
        "tokenizer.json": _json(tokenizer),
        "tokenizer_config.json": _json(config),
    }


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
