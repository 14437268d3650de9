from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from ragbench.collection.schema import Collection, Query, corpus_from_rows, split_queries
from ragbench.errors import RagbenchError
from ragbench.generation.generate import Generator, prompts_for
from ragbench.generation.prompts import REFUSAL
from ragbench.training.examples import FEATURES, KINDS, Example, Mix, generator_examples, rows, to_dataset

IDS = [f"p{number}" for number in range(10)]
GENERATOR = Generator(backend="none", contexts=3, instruction="bab dek")
AS_RETRIEVED = Mix(contexts=3, without_gold=0, shuffle=False)


def collection(*queries: Query, gold: dict[str, dict[str, int]], texts: dict[str, str] | None = None) -> Collection:
    """Return ten passages (p0 to p9) and some questions, all of the split train."""
    corpus = corpus_from_rows([(name, f"Title {name}", (texts or {}).get(name, f"Text {name}"), "d") for name in IDS])
    return Collection("c", corpus, {each.id: each for each in queries}, {"train": {q.id: gold[q.id] for q in queries}})


def example(
    query: Query, gold: dict[str, int], retrieved: str, mix=AS_RETRIEVED, generator=GENERATOR, **more
) -> Example:
    """Return the example of one question; `retrieved` names the passages found, best first."""
    run = {query.id: {name: -float(rank) for rank, name in enumerate(retrieved.split())}}
    [found] = generator_examples(collection(query, gold={query.id: gold}, **more), "train", run, generator, mix)
    return found


def many(number: int) -> tuple[Collection, dict[str, dict[str, float]]]:
    """Return so many questions with the gold passage p0, and a run that has found every passage."""
    queries = [Query(f"q{place}", f"Question {place}?", "Text. [p0]") for place in range(number)]
    run = {query.id: {name: -float(rank) for rank, name in enumerate(IDS)} for query in queries}
    return collection(*queries, gold={query.id: {"p0": 1} for query in queries}), run


ONE = Query("q", "Which one?", "That one. [p1]")
TWO = Query("q", "Which two?", "These two. [p1] [p2]", needs=(("p1",), ("p2",)))


def test_a_retrieved_gold_passage_keeps_its_place():
    found = example(ONE, {"p1": 1}, "p5 p1 p6 p7")
    assert (found.kind, found.context_ids, found.gold_ids) == ("gold retrieved", ("p5", "p1", "p6"), ("p1",))
    assert (found.completion, found.missing_ids) == ("That one. [p1]", ())


def test_a_gold_passage_that_was_not_retrieved_replaces_the_lowest_ranked_one():
    found = example(ONE, {"p1": 1}, "p5 p6 p7 p1")
    assert (found.kind, found.context_ids, found.gold_ids) == ("gold added", ("p5", "p6", "p1"), ("p1",))


def test_what_is_needed_and_retrieved_does_not_give_way_to_what_is_added():
    found = example(TWO, {"p1": 1, "p2": 1}, "p5 p6 p1 p7")
    assert (found.kind, found.context_ids, found.gold_ids) == ("gold added", ("p5", "p1", "p2"), ("p1", "p2"))


def test_one_passage_of_each_group_is_enough_and_a_retrieved_one_is_taken():
    either = replace(TWO, answer="These two.", needs=(("p1", "p3"), ("p2", "p4")))
    found = example(either, {"p1": 2, "p2": 1, "p3": 1, "p4": 2}, "p3 p6 p7")
    assert (found.kind, found.context_ids) == ("gold added", ("p3", "p6", "p4"))


def test_the_passages_that_the_answer_cites_are_shown_although_others_would_do():
    found = example(replace(ONE, needs=(("p1", "p3"),)), {"p1": 1, "p3": 2}, "p3 p6 p7")
    assert (found.kind, found.context_ids, found.gold_ids) == ("gold added", ("p3", "p6", "p1"), ("p3", "p1"))


def test_an_answer_that_needs_more_passages_than_are_shown_is_marked():
    found = example(TWO, {"p1": 1, "p2": 1}, "p5 p1", replace(AS_RETRIEVED, contexts=1))
    assert (found.kind, found.context_ids, found.missing_ids) == ("gold added", ("p1",), ("p2",))


def test_without_gold_the_next_distractors_fill_in_and_the_answer_is_a_refusal():
    found = example(ONE, {"p1": 1, "p2": 1}, "p5 p1 p6 p2 p7 p8", replace(AS_RETRIEVED, without_gold=1))
    assert (found.kind, found.context_ids, found.gold_ids) == ("gold left out", ("p5", "p6", "p7"), ())
    assert (found.completion, found.missing_ids) == (REFUSAL, ())


def test_copies_of_the_gold_passage_are_left_out_with_it():
    texts = {"p1": "The same.", "p6": "The same."}
    found = example(ONE, {"p1": 1}, "p5 p6 p7 p1 p8", replace(AS_RETRIEVED, without_gold=1), texts=texts)
    assert found.context_ids == ("p5", "p7", "p8")


def test_a_passage_that_is_all_title_has_no_copies():
    found = example(ONE, {"p1": 1}, "p1 p2 p3 p4", replace(AS_RETRIEVED, without_gold=1), texts=dict.fromkeys(IDS, ""))
    assert found.context_ids == ("p2", "p3", "p4")


def test_an_unanswerable_question_keeps_what_was_retrieved_and_its_own_refusal():
    query = Query("q", "Why?", "No passage tells. [none]", tags=("unanswerable",))
    found = example(query, {}, "p5 p6 p7 p8", replace(AS_RETRIEVED, without_gold=1))
    assert (found.kind, found.context_ids) == ("unanswerable", ("p5", "p6", "p7"))
    assert found.completion == "No passage tells. [none]"
    assert example(replace(query, answer=None), {}, "p5").completion == REFUSAL


def test_an_answer_without_labels_keeps_what_was_retrieved():
    found = example(ONE, {"p1": 0}, "p5 p6 p7 p1", replace(AS_RETRIEVED, without_gold=1))
    assert (found.kind, found.context_ids, found.gold_ids) == ("gold unknown", ("p5", "p6", "p7"), ())


def test_questions_without_reference_answer_give_no_example():
    data = collection(replace(ONE, answer=None), replace(ONE, id="r"), gold={"q": {"p1": 1}, "r": {"p1": 1}})
    found = generator_examples(data, "train", {"q": {}, "r": {}}, GENERATOR, AS_RETRIEVED)
    assert [(each.query_id, each.split, each.context_ids) for each in found] == [("r", "train", ("p1",))]


def test_unchanged_contexts_give_the_prompts_of_answering(tiny_generator: Path):
    generator = Generator(model=str(tiny_generator), contexts=7, max_context_tokens=40, instruction="bab dek")
    data, run = many(3)
    prompts = prompts_for(data, split_queries(data, "train"), run, replace(generator, contexts=3))
    found = generator_examples(data, "train", run, generator, AS_RETRIEVED)
    assert [(each.query_id, each.messages, each.context_ids) for each in found] == [
        (prompt.query_id, prompt.messages, prompt.context_ids) for prompt in prompts
    ]
    assert prompts[0].cut_ids  # the limit holds for both


def test_a_gold_passage_that_would_be_cut_moves_ahead_only_as_far_as_it_must():
    texts = dict.fromkeys(IDS, "bab dek gop " * 8)
    long = {"generator": replace(GENERATOR, max_context_tokens=100), "texts": texts}
    found = example(ONE, {"p1": 1}, "p5 p6 p1", **long)
    assert (found.context_ids[:2], found.missing_ids) == (("p5", "p1"), ())
    found = example(TWO, {"p1": 1, "p2": 1}, "p5 p1 p2", **long)
    assert (found.context_ids[:2], found.missing_ids) == (("p1", "p2"), ())


def test_a_gold_passage_that_fits_nowhere_is_marked():
    found = example(ONE, {"p1": 1}, "p5 p6 p1", generator=replace(GENERATOR, max_context_tokens=5))
    assert (found.context_ids, found.gold_ids, found.missing_ids) == ((), (), ("p1",))


@pytest.mark.parametrize("share", [0, 0.2, 0.25, 0.6, 1])
def test_the_share_without_gold_is_met_within_rounding(share: float):
    data, run = many(23)
    found = generator_examples(data, "train", run, GENERATOR, Mix(without_gold=share))
    assert abs(sum(each.kind == "gold left out" for each in found) - share * 23) <= 0.5


def test_the_order_of_the_questions_changes_nothing_and_the_seed_does():
    data, run = many(20)
    backwards = replace(data, qrels={"train": dict(reversed(data.qrels["train"].items()))})
    first, again, other = (
        {
            each.query_id: each
            for each in generator_examples(where, "train", run, GENERATOR, Mix(without_gold=0.4, seed=seed))
        }
        for where, seed in [(data, 1), (backwards, 1), (data, 2)]
    )
    assert first == again
    left_out = [{name for name, each in found.items() if each.kind == "gold left out"} for found in (first, other)]
    assert left_out[0] != left_out[1]
    assert [each.context_ids for each in first.values()] != [each.context_ids for each in other.values()]


def test_a_question_more_leaves_the_order_in_the_others_as_it_was():
    (fewer, run), (more, longer_run) = many(8), many(9)
    mix = replace(AS_RETRIEVED, shuffle=True)
    found = generator_examples(more, "train", longer_run, GENERATOR, mix)
    assert found[:8] == generator_examples(fewer, "train", run, GENERATOR, mix)


def test_shuffled_the_gold_passage_stands_everywhere():
    data, run = many(60)
    found = generator_examples(data, "train", run, GENERATOR, replace(AS_RETRIEVED, shuffle=True))
    places = [each.context_ids.index("p0") for each in found]
    assert {sorted(each.context_ids) == ["p0", "p1", "p2"] for each in found} == {True}
    assert all(10 <= places.count(place) <= 30 for place in range(3))


@settings(deadline=None, max_examples=60)
@given(
    retrieved=st.lists(st.sampled_from(IDS), unique=True),
    groups=st.lists(st.lists(st.sampled_from(IDS), min_size=1, max_size=3, unique=True), max_size=3),
    cited=st.lists(st.sampled_from(IDS), max_size=2),
    mix=st.builds(Mix, st.integers(1, 5), st.sampled_from([0.0, 1.0]), st.booleans(), st.integers(0, 3)),
    limit=st.integers(1, 60),
)
def test_whatever_was_retrieved_the_contexts_hold_what_they_should(retrieved, groups, cited, mix, limit):
    answer = "Text." + "".join(f" [{name}]" for name in cited)
    query = Query("q", "Which?", answer, needs=tuple(map(tuple, groups)))
    gold = dict.fromkeys((name for group in groups for name in group), 1)
    found = example(query, gold, " ".join(retrieved), mix, replace(GENERATOR, max_context_tokens=limit))
    assert found.kind in KINDS
    assert len(set(found.context_ids)) == len(found.context_ids) <= mix.contexts
    assert set(found.gold_ids) == set(gold) & set(found.context_ids)
    if found.kind == "gold left out":
        assert (found.gold_ids, found.missing_ids) == ((), ())
    elif not found.missing_ids:
        assert all(set(group) & set(found.gold_ids) for group in groups)
        assert set(cited) & set(gold) <= set(found.gold_ids)


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        (Mix(without_gold=1.5), "prep_without_gold is a share from 0 to 1, not 1.5"),
        (Mix(contexts=0), "generator_contexts is 0"),
    ],
)
def test_an_impossible_mix_is_an_error_that_names_the_parameter(mix: Mix, message: str):
    with pytest.raises(RagbenchError, match=message):
        example(ONE, {"p1": 1}, "p1", mix)


def test_a_run_for_other_questions_is_an_error_that_names_one_and_the_split():
    data, run = many(3)
    with pytest.raises(RagbenchError, match=r"2 of 3 questions of the split 'train'.*'q1'"):
        generator_examples(data, "train", {"q0": run["q0"]}, GENERATOR, Mix())


def test_parquet_keeps_every_row(tmp_path: Path):
    data, run = many(5)
    found = generator_examples(data, "train", run, GENERATOR, Mix(without_gold=0.4))
    to_dataset(found).to_parquet(tmp_path / "examples.parquet")
    read = Dataset.from_parquet(str(tmp_path / "examples.parquet"), cache_dir=str(tmp_path / "cache"))
    assert (list(read), read.features) == (rows(found), FEATURES)
    assert read[0]["completion"] == [{"role": "assistant", "content": found[0].completion}]


def test_no_examples_are_an_empty_data_set_with_the_same_columns():
    empty = to_dataset([])
    assert (len(empty), empty.features) == (0, FEATURES)


def test_trl_reads_the_rows_as_the_prompts_of_answering(tiny_generator: Path):
    trl = pytest.importorskip("trl.data_utils")
    from transformers import AutoTokenizer

    from ragbench.generation.local import render

    tokenizer = AutoTokenizer.from_pretrained(tiny_generator)
    found = example(ONE, {"p1": 1}, "p5 p1 p6")
    [row] = to_dataset([found])
    assert trl.is_conversational(row)
    texts = trl.apply_chat_template({name: row[name] for name in ("prompt", "completion")}, tokenizer)
    assert texts == {"prompt": render(tokenizer, found.messages), "completion": "That one. [p1] "}
