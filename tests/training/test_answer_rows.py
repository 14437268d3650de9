from pathlib import Path

import pytest
from generator_examples import example
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from ragbench.errors import RagbenchError
from ragbench.generation.local import complete, render
from ragbench.training.answer_rows import IGNORED, answer_rows, prompt_tokens

END = 1


@pytest.fixture
def tokenizer(tiny_generator: Path):
    return AutoTokenizer.from_pretrained(tiny_generator)


def answers(rows) -> list[list[int]]:
    return [[label for label in row["labels"] if label != IGNORED] for row in rows]


def test_the_prompt_is_the_one_that_is_answered_and_only_the_answer_has_labels(tokenizer, tiny_generator):
    row = example(3)
    [made] = answer_rows([row], tokenizer, [END], None)
    prompt = prompt_tokens(row, tokenizer)
    [completion] = complete([row["prompt"]], model=str(tiny_generator), device="cpu", dtype="float32", max_new_tokens=1)
    assert len(prompt) == completion.prompt_tokens
    assert made["input_ids"][: len(prompt)] == prompt
    assert made["labels"][: len(prompt)] == [IGNORED] * len(prompt)
    assert made["labels"][len(prompt) :] == made["input_ids"][len(prompt) :]
    assert tokenizer.decode(made["input_ids"][len(prompt) : -1]) == "mim nan kak [ p3 ]"
    assert made["input_ids"][-1] == END and made["query_id"] == "q3"


def test_an_answer_ends_as_a_turn_does_in_the_chat_template(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    [labels] = answers(answer_rows([example(0)], tokenizer, [END], None))
    assert labels.count(END) == 1 and labels[-1] == END


def test_a_turn_that_ends_with_what_does_not_stop_the_decoding_gets_an_end_that_does(tokenizer):
    [labels] = answers(answer_rows([example(0)], tokenizer, [7, END], None))
    assert labels[-1] == END
    [labels] = answers(answer_rows([example(0)], tokenizer, [7], None))
    assert labels[-1] == 7


def test_a_template_without_a_system_role_is_trained_as_it_is_answered(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m['role'] }} {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
    )
    row = example(0)
    [made] = answer_rows([row], tokenizer, [END], None)
    text = tokenizer.decode(made["input_ids"])
    assert text.startswith(tokenizer.decode(tokenizer(render(tokenizer, row["prompt"]))["input_ids"]))
    assert text.endswith("mim nan bab [ p0 ] <|end|>")


def test_a_model_without_a_chat_template_is_trained_after_the_plain_prompt(tokenizer):
    tokenizer.chat_template = None
    [made] = answer_rows([example(0)], tokenizer, [END], None)
    assert tokenizer.decode(made["input_ids"]).endswith("answer : mim nan bab [ p0 ] <|end|>")


@given(st.text(min_size=1).filter(lambda text: text.strip()))
def test_whatever_is_expected_the_prompt_gets_no_label_and_the_answer_one_end(tiny_generator, text):
    tokenizer = AutoTokenizer.from_pretrained(tiny_generator)
    row = example(0, text)
    [made] = answer_rows([row], tokenizer, [END], None)
    prompt = prompt_tokens(row, tokenizer)
    assert made["input_ids"][: len(prompt)] == prompt
    assert made["labels"] == [IGNORED] * len(prompt) + made["input_ids"][len(prompt) :]
    assert made["labels"][-1] == END


def test_an_empty_answer_is_an_error_that_names_the_query(tokenizer):
    with pytest.raises(RagbenchError, match="query 'q4' expects an empty answer"):
        answer_rows([example(0), example(4, " \n")], tokenizer, [END], None)


def test_an_example_that_the_model_cannot_read_is_an_error_that_names_it_and_what_to_lower(tokenizer):
    [row] = answer_rows([example(2)], tokenizer, [END], None)
    size = len(row["input_ids"])
    assert len(answer_rows([example(2)], tokenizer, [END], size)) == 1
    with pytest.raises(RagbenchError, match=rf"query 'q2' takes {size} tokens.*reads {size - 1}.*max_context_tokens"):
        answer_rows([example(2)], tokenizer, [END], size - 1)


def test_without_any_end_token_nothing_is_trained(tokenizer):
    with pytest.raises(RagbenchError, match=r"end token.*tokenizer_config.json"):
        answer_rows([example(0)], tokenizer, [], None)
