"""What a batch is made of, and what of it is trained on, by rows that are written by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.worker.checkpoints.tokenizer import CHAT_TEMPLATE
from harness.worker.recipes.recipe import recipe
from harness.worker.stages.chats import MARKED_TEMPLATE, conversations, rendered
from harness.worker.stages.data import TRAINING_LENGTH, TRAINING_SEQUENCES
from harness.worker.stages.documents import Batches, Document, dataset, documents_in, training_documents
from harness.worker.stages.objective_watch import judge_steps
from harness.worker.stages.trainer_options import BATCH

A, B = Document.whole([4, 5, 6]), Document.whole([7, 8])
ANSWER = Document(tokens=(2, 9, 10), counted=(False, True, True))


def test_documents_are_found_in_rows_whatever_lies_beside_them() -> None:
    assert documents_in([4, 5, 6], [A, B]) == [(0, A)]
    assert documents_in([7, 8, 0], [A, B]) == [(0, B)]
    assert documents_in([7, 8, 4, 5, 6, 7, 8], [A, B]) == [(0, B), (2, A), (5, B)]


def test_what_is_not_known_is_one_text() -> None:
    assert documents_in([4, 5, 7, 8], [A, B]) == [(0, Document.whole([4, 5, 7, 8]))]


def test_of_two_documents_that_begin_alike_the_longer_is_meant() -> None:
    longer = Document.whole([7, 8, 9])

    assert documents_in([7, 8, 9], [B, longer]) == [(0, longer)]


@pytest.mark.parametrize(
    ("known", "packed", "row", "labels", "wrong"),
    [
        ([A, B], False, [7, 8, 0], [7, 8, -100], 0),
        ([A, B], False, [7, 8, 0], [7, 8, 0], 1),  # padding is trained on
        ([A, B], False, [7, 8, 0], [-100, 8, -100], 1),  # a label is masked
        ([A, B], True, [4, 5, 6, 7, 8], [-100, 5, 6, -100, 8], 0),
        ([A, B], True, [4, 5, 6, 7, 8], [-100, 5, 6, 7, 8], 1),  # a text is predicted by the one before it
        ([ANSWER], False, [2, 9, 10], [-100, 9, 10], 0),
        ([ANSWER], False, [2, 9, 10], [2, 9, 10], 1),  # what is asked is trained on
        ([ANSWER], False, [2, 9, 10], [-100, 9, -100], 1),  # and the answer's end is not
    ],
)
def test_labels_are_those_of_the_documents(
    known: list[Document], packed: bool, row: list[int], labels: list[int], wrong: int
) -> None:
    batches = Batches(known=known, packed=packed)
    batches.take([row], [labels])

    assert batches.wrong == wrong


@pytest.mark.parametrize("name", ["lora", "lora-padded", "lora-packed", "lora-chat", "lora-checkpointing"])
def test_a_recipe_s_steps_are_right_and_one_label_less_is_not(name: str) -> None:
    """As many rows as the recipe's steps have, made as a trainer should make them."""
    plan = recipe(name)
    batches = Batches(known=training_documents(plan, 104, 0), packed=plan.packing)
    rows = [[document] for document in batches.known]
    if plan.packing:
        rows = [batches.known[at : at + 2] for at in range(0, len(batches.known), 2)]
    for at in range(plan.steps * BATCH):
        row, labels = [], []
        for document in rows[at % len(rows)]:
            row += document.tokens
            labels += [t if counts else -100 for t, counts in zip(document.tokens, document.counted, strict=True)]
            if plan.packing:
                labels[len(row) - len(document.tokens)] = -100
        batches.take([row], [labels])

    assert judge_steps(plan, plan.steps, batches).passed
    assert not judge_steps(plan, plan.steps - 1, batches).passed
    assert not judge_steps(plan, plan.steps, replace(batches, labels=batches.labels - 1)).passed
    assert not judge_steps(plan, plan.steps, replace(batches, wrong=1)).passed


def test_texts_of_several_lengths_fill_rows_exactly() -> None:
    documents = training_documents(recipe("lora-packed"), 104, 0)
    lengths = [len(document.tokens) for document in documents]

    assert len(documents) == 2 * TRAINING_SEQUENCES
    assert len(set(lengths)) >= 5
    assert {a + b for a, b in zip(lengths[::2], lengths[1::2], strict=True)} == {TRAINING_LENGTH}


def test_answers_are_trained_on_with_the_token_that_ends_them() -> None:
    tokens, counted = rendered([{"role": "user", "content": "t7 t8"}, {"role": "assistant", "content": "t9"}])

    assert tokens == (2, 3, 7, 8, 1, 2, 3, 9, 1)
    assert counted == (False, False, False, False, False, False, False, True, True)
    assert max(len(rendered(chat)[0]) for chat in conversations(104, 0)) <= TRAINING_LENGTH
    assert dataset(recipe("lora-chat"), 104, 0) == {"messages": conversations(104, 0)}


def test_the_marked_template_says_what_the_checkpoint_s_own_does() -> None:
    marks = ("{% generation %}", "{% endgeneration %}", "{% if message['role'] == 'assistant' %}")
    jinja2 = pytest.importorskip("jinja2")
    bare = MARKED_TEMPLATE.replace(marks[0], "").replace(marks[1], "")
    chat = conversations(104, 0)[0]

    for prompt in (True, False):
        said = [
            jinja2.Template(template).render(messages=chat, add_generation_prompt=prompt)
            for template in (CHAT_TEMPLATE, bare)
        ]
        assert said[0] == said[1]
