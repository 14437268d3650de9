from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset

from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.errors import RagbenchError
from ragbench.generation.generate import Generator, token_counter
from ragbench.generation.prompts import REFUSAL
from ragbench.retrieval.encoder import Encoder, open_encoder
from ragbench.training.example_checks import CHECKS, Checked, check_examples, overview, rejected_dataset
from ragbench.training.examples import FEATURES, KINDS, Example, Mix, generator_examples, rows

TEXT = "shutil.copytree copies a directory tree. It creates all folders that the destination needs."
SUPPORTED = "It copies a directory tree and creates all folders that the destination needs. [p1]"
UNSUPPORTED = "Bananas from Peru cost 27 dollars. [p1]"
QUESTION = "How do I copy a directory tree?"
GENERATOR = Generator(backend="none", max_new_tokens=64)
GOOD = Example("q1", "train", "gold retrieved", ({"role": "user", "content": "x"},), SUPPORTED, ("p1",), ("p1",), ())


@pytest.fixture(scope="module")
def data() -> Collection:
    corpus = corpus_from_rows([("p1", "shutil.copytree", TEXT, "d"), ("p2", "os.walk", "os.walk walks.", "d")])
    texts = {"q1": QUESTION, "q2": QUESTION.upper(), "q3": "How are folders copied?", "q4": "And trees?"}
    queries = {name: Query(name, text) for name, text in {**texts, "t1": "and trees"}.items()}
    qrels = {"train": {name: {"p1": 1} for name in texts}, "test": {"t1": {"p2": 1}}}
    return Collection("c", corpus, queries, qrels)


@pytest.fixture
def encoder(tiny_encoder: Path) -> Encoder:
    return open_encoder(str(tiny_encoder), device="cpu", dtype="float32")


@pytest.fixture
def check(data: Collection, encoder: Encoder):
    """Return a function that checks examples of the small collection."""
    return lambda *examples, generator=GENERATOR, **more: check_examples(examples, data, encoder, generator, **more)


def faults(checked: Checked) -> list[tuple[str, str, str]]:
    return [(each.example.query_id, each.reason, each.detail) for each in checked.rejected]


def test_a_good_example_is_kept_as_it_is(check):
    assert check(GOOD) == Checked((GOOD,), ())


def test_an_answer_that_the_passages_do_not_support_is_unsupported(check):
    [(_, reason, detail)] = faults(check(replace(GOOD, completion=UNSUPPORTED)))
    assert reason == "unsupported"
    assert "0.5 needed" in detail
    assert "Bananas from Peru" in detail


@pytest.mark.parametrize(
    ("changed", "detail"),
    [({"context_ids": ()}, "grounding 0.00"), ({"completion": "- [p1]"}, "nothing but citations")],
)
def test_no_passages_and_no_words_are_unsupported(check, changed, detail):
    [(_, reason, found)] = faults(check(replace(GOOD, **changed), checks=["unsupported"]))
    assert reason == "unsupported"
    assert detail in found


@pytest.mark.parametrize("kind", ["gold left out", "unanswerable"])
def test_a_refusal_needs_no_support_and_is_in_house_style(check, kind):
    refusing = replace(GOOD, kind=kind, completion=REFUSAL, context_ids=("p2",), gold_ids=())
    assert check(refusing).kept == (refusing,)


def test_an_unanswerable_question_with_an_answer_is_unsupported(check):
    wrong = replace(GOOD, kind="unanswerable", completion=UNSUPPORTED)
    assert [reason for _, reason, _ in faults(check(wrong))] == ["unsupported"]


def test_an_answer_without_its_source_is_not_house_style(check):
    plain = replace(GOOD, completion=SUPPORTED.removesuffix(" [p1]"))
    assert faults(check(plain)) == [("q1", "house style", "does not match answer_format")]
    assert check(plain, answer_format=r"It .*").kept == (plain,)


def test_a_cited_passage_that_is_not_shown_is_named(check):
    assert faults(check(replace(GOOD, completion=f"{SUPPORTED} [p2]"))) == [("q1", "cites what is not shown", "p2")]


def test_an_answer_must_end_within_the_length_limit(check, tiny_generator: Path):
    generator = Generator(model=str(tiny_generator))
    tokens = token_counter(generator)(SUPPORTED)
    assert check(GOOD, generator=replace(generator, max_new_tokens=tokens + 1)).kept == (GOOD,)
    [(_, reason, detail)] = faults(check(GOOD, generator=replace(generator, max_new_tokens=tokens)))
    assert (reason, f"{tokens + 1} tokens" in detail) == ("length", True)


def test_a_needed_passage_that_is_not_shown_whole_is_named(check):
    [(_, reason, detail)] = faults(check(replace(GOOD, missing_ids=("p1", "p2"))))
    assert (reason, detail.endswith("no room for p1, p2")) == ("length", True)


def test_the_same_question_and_answer_in_other_letters_is_a_duplicate(check):
    twin = replace(GOOD, query_id="q2", completion=SUPPORTED.replace("It copies", "it  copies,"))
    checked = check(GOOD, twin)
    assert (checked.kept, faults(checked)) == ((GOOD,), [("q2", "duplicate", "like 'q1'")])


@pytest.mark.parametrize(
    "other",
    [
        {"query_id": "q3"},
        {"query_id": "q2", "kind": "gold left out", "completion": REFUSAL},
    ],
)
def test_another_question_or_another_answer_is_no_duplicate(check, other):
    assert len(check(GOOD, replace(GOOD, **other)).kept) == 2


def test_what_is_rejected_makes_no_duplicates(check):
    twin = replace(GOOD, query_id="q2")
    checked = check(replace(GOOD, missing_ids=("p1",)), twin)
    assert (checked.kept, [reason for _, reason, _ in faults(checked)]) == ((twin,), ["length"])


def test_a_question_that_another_split_has_is_a_leak(check):
    checked = check(GOOD, replace(GOOD, query_id="q4"))
    assert checked.kept == (GOOD,)
    assert faults(checked) == [("q4", "leak", "another split has nearly the same question")]


PLANTED = {
    "leak": {"query_id": "q4"},
    "length": {"query_id": "q3", "missing_ids": ("p1",)},
    "house style": {"query_id": "q3", "completion": SUPPORTED.removesuffix(" [p1]")},
    "cites what is not shown": {"query_id": "q3", "completion": SUPPORTED.replace("p1", "p2")},
    "unsupported": {"query_id": "q3", "completion": UNSUPPORTED},
    "duplicate": {"query_id": "q2"},
}


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_finds_its_fault_alone_and_no_other_check_does(check, name):
    examples = (GOOD, replace(GOOD, **PLANTED[name]))
    alone = check(*examples, checks=[name])
    assert (alone.kept, [each.reason for each in alone.rejected]) == ((GOOD,), [name])
    assert check(*examples, checks=[each for each in CHECKS if each != name]) == Checked(examples, ())


def test_the_first_check_that_an_example_fails_gives_the_reason(check):
    wrong = replace(GOOD, query_id="q4", missing_ids=("p1",), completion="Bananas from Peru [p7] cost 27 dollars.")
    for number, name in enumerate(CHECKS[:5]):
        checked = check(wrong, checks=list(reversed(CHECKS[number:])))
        assert [each.reason for each in checked.rejected] == [name]


def test_an_unknown_check_is_an_error_that_lists_the_known_ones(check):
    with pytest.raises(RagbenchError, match=r"prep_example_checks has 'style'.*leak, length, house style"):
        check(GOOD, checks=["leak", "style"])


def test_no_examples_and_no_checks_are_fine(check):
    assert check() == Checked((), ())
    assert check(replace(GOOD, missing_ids=("p1",)), checks=[]).rejected == ()


def test_the_overview_counts_every_example_once(check):
    refusing = replace(GOOD, query_id="q3", kind="unanswerable", completion=REFUSAL)
    table = overview(
        check(GOOD, replace(GOOD, **PLANTED["duplicate"]), replace(GOOD, completion=UNSUPPORTED), refusing)
    )
    assert list(table.columns) == ["kind", "examples", "kept", *CHECKS]
    assert list(table["kind"]) == list(KINDS)
    counts = table.set_index("kind")
    assert dict(counts.loc["gold retrieved"][lambda row: row > 0]) == {
        "examples": 3, "kept": 1, "duplicate": 1, "unsupported": 1,
    }  # fmt: skip
    assert dict(counts.loc["unanswerable"][lambda row: row > 0]) == {"examples": 1, "kept": 1}
    assert table["examples"].sum() == 4
    assert overview(Checked((), ()))["examples"].sum() == 0


def test_rejected_examples_keep_their_reason_in_parquet(check, tmp_path: Path):
    rejected = check(*(replace(GOOD, **PLANTED[name]) for name in CHECKS[1:5])).rejected
    path = tmp_path / "rejected.parquet"
    rejected_dataset(rejected).to_parquet(path)
    read = list(Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache")))
    assert [(row["reason"], row["detail"]) for row in read] == [(each.reason, each.detail) for each in rejected]
    assert [{name: row[name] for name in FEATURES} for row in read] == rows(each.example for each in rejected)
    assert list(rejected_dataset([]).features) == [*FEATURES, "reason", "detail"]


def test_examples_made_from_a_collection_pass_or_tell_why(toy_folder: Path, tiny_encoder: Path):
    from ragbench.collection.beir import read_collection

    toy = read_collection(toy_folder)
    encoder = open_encoder(str(tiny_encoder), device="cpu", dtype="float32")
    run = {"q2": {"p4": 2.0, "p3": 1.0}, "q3": {"p1": 1.0}}
    examples = generator_examples(toy, "test", run, GENERATOR, Mix(contexts=3, without_gold=0))
    checked = check_examples(
        examples, toy, encoder, GENERATOR, checks=[each for each in CHECKS if each != "unsupported"]
    )
    assert [(each.query_id, each.kind) for each in checked.kept] == [("q2", "gold added"), ("q3", "unanswerable")]
    short = replace(GENERATOR, max_new_tokens=8)
    assert {reason for _, reason, _ in faults(check_examples(examples, toy, encoder, short))} == {"length"}
