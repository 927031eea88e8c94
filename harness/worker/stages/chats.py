"""Conversations to train on, a chat template that marks what the assistant says, and what it means by our own account.

The template renders what the checkpoint's own does, and marks answers with ``generation``, without which no release of
TRL can tell them. An answer is what the assistant says and the stop token after it: a model must learn to stop.
"""

from __future__ import annotations

from harness.worker.checkpoints.tokenizer import BOS, EOS, UNK
from harness.worker.stages.data import random_tokens

CONVERSATIONS = 16
CONTENT = 20
"""Tokens of the longest conversation, roles and special tokens apart."""

MARKED_TEMPLATE = (
    "{% for message in messages %}{{ '<bos> ' + message['role'] + ' ' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + ' <eos>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + ' <eos>' }}{% endif %}{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<bos> assistant ' }}{% endif %}\n"
)
"""A span that ended with the blank would end in no token, and transformers would mark all that follows."""

Message = dict[str, str]


def conversations(vocab: int, seed: int) -> list[list[Message]]:
    """Return conversations of two questions and two answers, of several lengths: a word ``t17`` is token 17."""
    contents = random_tokens("chats", vocab, seed, CONVERSATIONS * CONTENT).reshape(CONVERSATIONS, CONTENT).tolist()
    found: list[list[Message]] = []
    for number, content in enumerate(contents):
        messages: list[Message] = []
        at = 0
        for role, words in (("user", 4), ("assistant", 3 + number % 3), ("user", 3), ("assistant", 4 + number % 4)):
            said = content[at : at + words]
            messages.append({"role": role, "content": " ".join(f"t{token}" for token in said)})
            at += words
        found.append(messages)
    return found


def rendered(messages: list[Message]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Return the tokens of a conversation, and which of them are trained on. The name of a role is no known word."""
    tokens: list[int] = []
    counted: list[bool] = []
    for message in messages:
        said = [int(word.removeprefix("t")) for word in message["content"].split()]
        tokens += [BOS, UNK, *said, EOS]
        counted += [False, False, *[message["role"] == "assistant"] * (len(said) + 1)]
    return tuple(tokens), tuple(counted)
