from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, BloomConfig

from ragbench.collection.beir import read_collection
from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.errors import RagbenchError
from ragbench.generation.generate import TEMPLATE_TOKENS, Generator, answer_run, prompts_for, room_for_context
from ragbench.generation.prompts import CLOSED_BOOK

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


def test_prompts_are_those_that_are_answered(toy, queries, generator: Generator):
    prompts = prompts_for(toy, queries, RUN, generator)
    answers = answer_run(toy, queries, RUN, generator)
    shown = [(prompt.query_id, prompt.context_ids, prompt.cut_ids) for prompt in prompts]
    assert shown == [(answer.query_id, answer.context_ids, answer.cut_ids) for answer in answers]
    assert prompts[2].messages == (
        {"role": "system", "content": "bab dek"},
        {
            "role": "user",
            "content": "1. [p1] Cats Cats sleep all day.\n\n2. [p3] Fish Fish swim in water.\n\n"
            "What do cats do all day?",
        },
    )


def test_prompts_for_a_server_are_built_without_it(toy, queries, generator: Generator, free_port: int):
    served = Generator("endpoint", "m", endpoint=f"http://127.0.0.1:{free_port}/v1", contexts=2, instruction="bab dek")
    assert prompts_for(toy, queries, RUN, served) == prompts_for(toy, queries, RUN, generator)


def test_no_generator_shows_passages_and_answers_nothing(toy, queries, generator: Generator):
    none = Generator(backend="none", model="no/such/model", contexts=2, instruction="bab dek")
    assert answer_run(toy, queries, RUN, none) == []
    assert prompts_for(toy, queries, RUN, none) == prompts_for(toy, queries, RUN, generator)


def test_the_instruction_may_come_last(toy, queries, generator: Generator):
    last = Generator(**{**vars(generator), "order": "instruction_last"})
    [prompt] = prompts_for(toy, queries[:1], RUN, last)
    assert [message["role"] for message in prompt.messages] == ["user"]
    assert prompt.messages[0]["content"].endswith("Who barks and who swims?\n\nbab dek")
    first, other = (answer_run(toy, queries, RUN, each) for each in (generator, last))
    assert [a.context_ids for a in first] == [a.context_ids for a in other]
    assert all(a.prompt_tokens > b.prompt_tokens for a, b in zip(first, other, strict=True))  # one role less


def test_an_unknown_order_is_an_error_that_names_the_parameter_and_the_two(toy, queries, generator: Generator):
    wrong = Generator(**{**vars(generator), "order": "question_first"})
    with pytest.raises(RagbenchError, match=r"generator_prompt 'question_first'.*instruction_first.*instruction_last"):
        answer_run(toy, queries, RUN, wrong)


def test_the_closed_book_is_answered_anew(toy, queries, generator: Generator):
    closed = Generator(**{**vars(generator), "instruction": CLOSED_BOOK, "contexts": 0})
    assert [prompt.messages[0]["content"] for prompt in prompts_for(toy, queries, RUN, closed)] == [CLOSED_BOOK] * 3
    assert all(answer.context_ids == answer.cut_ids == () for answer in answer_run(toy, queries, RUN, closed))


def test_the_room_for_context_leaves_question_instruction_template_and_answer_theirs(generator: Generator):
    # The model reads 1024 tokens; an answer has 6, the instruction 2, the longest question 5.
    assert room_for_context(generator, ["bab", "bab dek gop bab dek"]) == 1024 - 6 - 2 - 5 - TEMPLATE_TOKENS
    assert room_for_context(generator, []) == 1024 - 6 - 2 - TEMPLATE_TOKENS


@pytest.mark.parametrize("order", ["instruction_first", "instruction_last"])
@pytest.mark.parametrize("question", ["bab?", "bab dek " * 300])
def test_passages_that_fill_the_room_are_answered(generator: Generator, question: str, order: str):
    collection = Collection(
        "long",
        corpus_from_rows([("p", "", "gip bop " * 2000, "d")]),
        {"q": Query("q", question)},
        {"dev": {"q": {"p": 1}}},
    )
    room = room_for_context(generator, [question])
    full = Generator(**{**vars(generator), "max_context_tokens": room, "order": order})
    [answer] = answer_run(collection, [collection.queries["q"]], {"q": {"p": 1.0}}, full)
    assert answer.cut_ids == ("p",) and 1024 - 6 - 2 * TEMPLATE_TOKENS < answer.prompt_tokens <= 1024 - 6


def test_a_model_that_does_not_tell_its_limit_is_known_to_read_what_it_is_given(tmp_path: Path):
    BloomConfig().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert room_for_context(Generator(model=str(tmp_path), max_context_tokens=300), ["bab"]) == 300


def test_a_served_model_is_known_to_read_what_it_is_given():
    assert room_for_context(Generator("endpoint", "m", max_context_tokens=300), ["bab"]) == 300
    assert room_for_context(Generator("none", max_context_tokens=300), ["bab"]) == 300
