from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from ragbench.collection.beir import read_collection
from ragbench.collection.schema import Collection, Query
from ragbench.errors import RagbenchError
from ragbench.generation.generate import Generator, answer_run

RUN = {"q1": {"p1": 9.0, "p3": 5.0, "p2": 1.0}, "q2": {"p3": 2.0, "p2": 1.0, "p4": 0.5}}


@pytest.fixture
def toy(toy_folder: Path) -> Collection:
    return read_collection(toy_folder)


@pytest.fixture
def queries(toy: Collection) -> list[Query]:
    return [toy.queries[name] for name in ("q2", "q3", "q1")]


@pytest.fixture
def generator(tiny_generator: Path) -> Generator:
    return Generator(model=str(tiny_generator), contexts=2, max_new_tokens=6, dtype="float32", instruction="bab dek")


def test_every_query_is_answered_in_order_from_the_best_passages_of_the_run(toy, queries, generator: Generator):
    answers = answer_run(toy, queries, RUN, generator)
    assert [answer.query_id for answer in answers] == ["q2", "q3", "q1"]
    assert [answer.context_ids for answer in answers] == [("p3", "p2"), (), ("p1", "p3")]
    assert [answer.cut_ids for answer in answers] == [(), (), ()]


def test_the_model_reads_the_passages_and_the_question_in_its_chat_template(toy, queries, generator: Generator):
    tokenizer = AutoTokenizer.from_pretrained(generator.model)
    model = AutoModelForCausalLM.from_pretrained(generator.model)
    text = (
        "system bab dek user 1. [p1] Cats Cats sleep all day.\n\n2. [p3] Fish Fish swim in water.\n\n"
        "What do cats do all day? assistant "
    )
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    new = model.generate(ids, do_sample=False, max_new_tokens=6)[0, ids.shape[1] :]
    answer = answer_run(toy, queries, RUN, generator)[2]
    assert answer.answer == tokenizer.decode(new, skip_special_tokens=True).strip()
    assert (answer.prompt_tokens, answer.completion_tokens) == (ids.shape[1], len(new))


def test_what_does_not_fit_is_recorded_in_the_answer(toy, queries, generator: Generator):
    small = Generator(**{**vars(generator), "max_context_tokens": 1})
    assert [(a.context_ids, a.cut_ids) for a in answer_run(toy, queries, RUN, small)] == [
        ((), ("p3", "p2")), ((), ()), ((), ("p1", "p3")),
    ]  # fmt: skip


def test_an_empty_run_still_answers_every_query(toy, queries, generator: Generator):
    answers = answer_run(toy, queries, {}, generator)
    assert [(answer.query_id, answer.context_ids) for answer in answers] == [("q2", ()), ("q3", ()), ("q1", ())]
    assert all(answer.completion_tokens == 6 for answer in answers)


def test_no_queries_give_no_answers(toy, generator: Generator):
    assert answer_run(toy, [], RUN, generator) == []


def test_the_same_call_twice_gives_the_very_same_answers(toy, queries, generator: Generator):
    assert answer_run(toy, queries, RUN, generator) == answer_run(toy, queries, RUN, generator)


def test_other_passages_or_another_instruction_are_answered_anew(toy, queries, generator: Generator):
    first = answer_run(toy, queries, RUN, generator)[2]
    fewer = answer_run(toy, queries, RUN, Generator(**{**vars(generator), "contexts": 1}))[2]
    terser = answer_run(toy, queries, RUN, Generator(**{**vars(generator), "instruction": "bab"}))[2]
    assert first.prompt_tokens > fewer.prompt_tokens
    assert first.prompt_tokens == terser.prompt_tokens + 1


def test_a_passage_that_the_corpus_lacks_is_named(toy, queries, generator: Generator):
    with pytest.raises(RagbenchError, match="p99"):
        answer_run(toy, queries, {"q1": {"p99": 1.0}}, generator)


def test_an_unknown_backend_is_an_error_that_names_the_two(toy, queries):
    with pytest.raises(RagbenchError, match=r"cloud.*local.*endpoint"):
        answer_run(toy, queries, RUN, Generator(backend="cloud"))


def test_a_model_that_is_not_there_is_an_error_that_names_it(toy, queries):
    with pytest.raises(RagbenchError, match="no/such/model"):
        answer_run(toy, queries, RUN, Generator(model="no/such/model"))
