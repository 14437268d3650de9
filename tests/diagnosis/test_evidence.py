import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.diagnosis.counterfactual import CONDITIONS, Trial
from ragbench.diagnosis.evidence import HOUSE, STAGES, gather
from ragbench.diagnosis.measures import COLUMNS, offline_measures
from ragbench.diagnosis.signs import all_signs
from ragbench.diagnosis.topics import topics_of
from ragbench.errors import RagbenchError
from ragbench.generation.answers import Answer
from ragbench.retrieval.encoder import open_encoder

NOTHING = pd.DataFrame(columns=COLUMNS)
MEASURES = ("correctness", "grounding", "relevance", "format", "refused")


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return open_encoder(str(tiny_encoder), device="cpu", dtype="float32")


def collection(qrels, *queries):
    """Return nine passages p1 to p9, and the queries of a split (those not given have no tags and no needs)."""
    named = {name: Query(name, f"What of {name}?", "The reference.") for rows in qrels.values() for name in rows}
    named |= {query.id: query for query in queries}
    corpus = corpus_from_rows((f"p{number}", f"Title {number}", "bab bed.", "d") for number in range(1, 10))
    return Collection("hand-made", corpus, named, qrels)


def trial(whole, run, contexts=3, **answers):
    questions = {split: [whole.queries[name] for name in rows] for split, rows in whole.qrels.items()}
    ranked = {name: {passage: -float(rank) for rank, passage in enumerate(order)} for name, order in run.items()}
    return Trial(questions, ranked, contexts, answers)


def answer(query_id, text="Text. [p1]", shown=(), cut=(), reason="stop"):
    return Answer(query_id, text, tuple(shown), tuple(cut), 1, 1, 0.1, reason)


def values(*rows):
    return pd.DataFrame(rows, columns=COLUMNS).astype({"value": float})


def one(encoder, gold, order, *queries, measures=NOTHING, contexts=3, **answers):
    """Gather the evidence of the one question q and return its row."""
    whole = collection({"test": {"q": gold}}, *queries)
    asked = {condition: {"q": given} for condition, given in answers.items()}
    return gather(whole, trial(whole, {"q": order}, contexts, **asked), measures, encoder).iloc[0]


def test_each_question_has_a_row_in_its_order(encoder):
    whole = collection({"dev": {"b": {"p1": 1}, "a": {}}, "train": {"c": {"p2": 1}}})
    table = gather(whole, trial(whole, {}), NOTHING, encoder)
    assert table[["split", "query_id"]].to_numpy().tolist() == [["dev", "b"], ["dev", "a"], ["train", "c"]]
    assert table["text"].tolist() == ["What of b?", "What of a?", "What of c?"]
    assert table.index.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("order", "cut", "stage"),
    [
        (["p2", "p3", "p4", "p5"], [], "not found"),
        ([], [], "not found"),
        (["p2", "p3", "p4", "p1"], [], "not shown"),
        (["p2", "p3", "p1"], ["p1"], "cut off"),
        (["p2", "p3", "p1"], ["p3", "p1"], "cut off"),
        (["p2", "p1", "p3"], ["p3"], "shown"),
        (["p1"], [], "shown"),
    ],
)
def test_the_stage_says_where_the_gold_passage_was_lost(encoder, order, cut, stage):
    assert one(encoder, {"p1": 1}, order, retrieved=answer("q", shown=order[:3], cut=cut))["stage"] == stage


@pytest.mark.parametrize(
    ("order", "cut", "stage"),
    [
        (["p1", "p4", "p5", "p2"], [], "not found"),  # p3 is not there
        (["p1", "p4", "p5", "p6", "p3"], [], "not shown"),
        (["p1", "p4", "p3"], ["p3"], "cut off"),
        (["p3", "p1", "p2"], ["p2"], "shown"),  # one passage of a group will do
        (["p3", "p1", "p2"], ["p1", "p2"], "cut off"),
    ],
)
def test_of_several_needs_the_one_that_was_lost_first_decides(encoder, order, cut, stage):
    query = Query("q", "What and who?", needs=(("p1", "p2"), ("p3",)))
    row = one(encoder, {"p1": 1, "p2": 1, "p3": 1}, order, query, retrieved=answer("q", shown=order[:3], cut=cut))
    assert row["stage"] == stage and row["needs"] == 2


def test_several_gold_passages_are_one_need_unless_the_question_is_tagged_multi(encoder):
    gold = {"p1": 1, "p2": 2}
    assert one(encoder, gold, ["p2"])[["needs", "stage"]].tolist() == [1, "shown"]
    multi = Query("q", "?", tags=("multi",))
    assert one(encoder, gold, ["p2"], multi)[["needs", "stage"]].tolist() == [2, "not found"]


def test_a_passage_judged_irrelevant_is_not_gold(encoder):
    row = one(encoder, {"p1": 0, "p2": 1}, ["p1", "p2"])
    assert row[["needs", "stage", "first_gold"]].tolist() == [1, "shown", False]
    assert pd.isna(one(encoder, {"p1": 0}, ["p1"])["stage"])


def test_an_unanswerable_question_has_no_stage_and_no_gap(encoder):
    query = Query("q", "zebra quux?", tags=("unanswerable",))
    row = one(encoder, {}, ["p1"], query, retrieved=answer("q", "[none]", ["p1"]))
    assert pd.isna(row["stage"]) and np.isnan(row["gap"]) and row["needs"] == 0
    assert not row["answerable"] and not row["first_gold"] and row["answered"]
    assert pd.isna(row["cited_given"])
    assert row["special"] == 1  # the question's alone


def test_a_question_that_the_run_lacks_has_found_nothing(encoder):
    whole = collection({"test": {"q": {"p1": 1}}})
    row = gather(whole, trial(whole, {}), NOTHING, encoder).iloc[0]
    assert row["stage"] == "not found" and not row["first_gold"]


def test_the_best_passage_is_gold_or_it_is_not(encoder):
    assert one(encoder, {"p1": 1}, ["p1", "p2"])["first_gold"]
    assert not one(encoder, {"p1": 1}, ["p2", "p1"])["first_gold"]


ranks = st.permutations([f"p{number}" for number in range(1, 8)])
golds = st.sets(st.sampled_from(["p1", "p2", "p3", "p8"]), min_size=1)


@settings(max_examples=25, deadline=None)
@given(order=ranks, gold=golds, multi=st.booleans(), contexts=st.integers(1, 6), cut=st.integers(0, 3))
def test_showing_more_cutting_less_and_ranking_better_never_lose_a_passage_earlier(
    encoder, order, gold, multi, contexts, cut
):
    query = Query("q", "What?", tags=("multi",) if multi else ())

    def reached(order, contexts, cut):
        shown = order[:contexts]
        given = answer("q", shown=shown, cut=shown[len(shown) - min(cut, len(shown)) :])
        row = one(encoder, dict.fromkeys(sorted(gold), 1), order, query, contexts=contexts, retrieved=given)
        return STAGES.index(row["stage"])

    before = reached(order, contexts, cut)
    assert reached(order, contexts, 0) >= before
    assert reached(order, contexts + 1, cut + 1) >= before
    assert reached(order, contexts + 1, 0) >= before
    assert reached(sorted(order, key=lambda name: name not in gold), contexts, cut) >= before
    assert (before == 0) == (not gold <= set(order) if multi else not gold & set(order))


def test_without_any_answers_the_retrieval_is_told_and_every_measure_is_missing(encoder):
    whole = collection({"test": {"found": {"p1": 1}, "lost": {"p1": 1}}})
    for answers in ({}, {condition: {} for condition in CONDITIONS}):
        table = gather(whole, trial(whole, {"found": ["p1"], "lost": ["p2"]}, **answers), NOTHING, encoder)
        assert table["stage"].tolist() == ["shown", "not found"]
        assert not table["asked"].any() and not table["answered"].any()
        for measure in MEASURES:
            for condition in (*CONDITIONS, "given"):
                assert table[f"{measure}_{condition}"].isna().all()
        assert table[["cited_given", "unchanged_given", "form", "usual_form"]].isna().all(axis=None)


def test_the_evidence_of_a_trial_without_answers_shows_the_retrievers_sign_alone(encoder):
    whole = collection({"test": {f"q{number}": {"p1": 1} for number in range(12)}})
    whole.queries.update({name: Query(name, "What is it that cats do?") for name in whole.queries})
    asked = trial(whole, {name: ["p2"] for name in whole.queries})
    table = gather(whole, asked, offline_measures(whole, asked, encoder, None), encoder)
    signs = all_signs(table, topics_of(whole, asked, encoder))
    assert [(sign.name, sign.rate, sign.n) for sign in signs if sign.state != "unknown"] == [("missed", 1.0, 12)]


@pytest.mark.parametrize("questions", [{}, {"test": []}])
def test_without_questions_there_is_nothing_to_audit_and_the_error_names_the_parameter(encoder, questions):
    whole = collection({"test": {"q": {"p1": 1}}})
    with pytest.raises(RagbenchError, match=r"no questions.*audit_splits"):
        gather(whole, Trial(questions, {}, 3, {}), NOTHING, encoder)


def test_only_some_of_the_questions_need_have_answers(encoder):
    whole = collection({"test": {name: {"p1": 1} for name in "abc"}})
    retrieved = {"b": answer("b", shown=["p1"])}
    table = gather(
        whole,
        trial(whole, {name: ["p1"] for name in "abc"}, retrieved=retrieved),
        values(("retrieved", "b", "correctness", 0.7)),
        encoder,
    )
    assert table["asked"].tolist() == table["answered"].tolist() == [False, True, False]
    assert table["correctness_given"].tolist() == pytest.approx([np.nan, 0.7, np.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("order", "cut", "given"), [(["p1"], [], 0.2), (["p1"], ["p1"], 0.9), (["p2"], [], 0.9), ([], [], 0.9)]
)
def test_given_is_the_retrieved_answer_where_all_was_shown_whole_and_else_the_oracle_one(encoder, order, cut, given):
    measures = values(
        *[("retrieved", "q", measure, 0.2) for measure in MEASURES],
        *[("oracle", "q", measure, 0.9) for measure in MEASURES],
        *[("none", "q", measure, 0.5) for measure in MEASURES],
    )
    row = one(
        encoder,
        {"p1": 1},
        order,
        measures=measures,
        retrieved=answer("q", shown=order, cut=cut),
        oracle=answer("q", shown=["p1"]),
        none=answer("q"),
    )
    assert not row["oracle_cut"]
    assert [row[f"{measure}_given"] for measure in MEASURES] == [given] * 5
    assert row["correctness_retrieved"] == 0.2 and row["correctness_none"] == 0.5


def test_a_measure_that_could_not_be_had_is_missing_and_not_taken_from_another_condition(encoder):
    measures = values(("retrieved", "q", "correctness", np.nan), ("oracle", "q", "correctness", 0.9))
    row = one(encoder, {"p1": 1}, ["p1"], measures=measures, retrieved=answer("q", shown=["p1"]), oracle=answer("q"))
    assert np.isnan(row["correctness_given"])


def test_gold_passages_that_did_not_fit_the_oracle_prompt_were_not_given(encoder):
    measures = values(("retrieved", "q", "correctness", 0.1), ("oracle", "q", "correctness", 0.1))
    row = one(
        encoder,
        {"p1": 1},
        ["p2"],
        measures=measures,
        retrieved=answer("q", shown=["p2"]),
        oracle=answer("q", "Text. [p3]", ["p1"], cut=["p1"]),
    )
    assert row["oracle_cut"]
    assert np.isnan(row["correctness_given"]) and row["correctness_oracle"] == 0.1
    assert pd.isna(row["cited_given"]) and pd.isna(row["unchanged_given"])


def test_a_cut_oracle_prompt_does_not_matter_where_all_was_retrieved_whole(encoder):
    measures = values(("retrieved", "q", "correctness", 0.7), ("oracle", "q", "correctness", 0.1))
    answers = {"retrieved": answer("q", shown=["p1"]), "oracle": answer("q", shown=["p1"], cut=["p1"])}
    row = one(encoder, {"p1": 1}, ["p1"], measures=measures, **answers)
    assert row["oracle_cut"] and row["correctness_given"] == 0.7 and row["cited_given"] == 1


def test_gold_passages_that_fit_or_that_nobody_asked_about_are_not_cut(encoder):
    assert not one(encoder, {"p1": 1}, ["p2"], oracle=answer("q", shown=["p1"]))["oracle_cut"]
    assert not one(encoder, {"p1": 1}, ["p2"])["oracle_cut"]


def test_what_is_cited_and_unchanged_is_told_of_the_answer_that_was_given_all(encoder):
    query = Query("q", "What and who?", tags=("multi",))
    answers = {
        "retrieved": answer("q", "cats sleep [p1]", ["p1", "p2"]),
        "oracle": answer("q", "dogs bark [p1] [p2]", ["p1", "p2"]),
        "none": answer("q", "dogs bark"),
    }
    gold = {"p1": 1, "p2": 1}
    shown = one(encoder, gold, ["p1", "p2"], query, **answers)
    assert (shown["cited_given"], shown["unchanged_given"]) == (0.5, 0.0)
    lost = one(encoder, gold, ["p1", "p3"], query, **answers)
    assert (lost["cited_given"], lost["unchanged_given"]) == (1.0, 1.0)
    unknown = one(encoder, gold, ["p1", "p2"], query, retrieved=answers["retrieved"])
    assert unknown["cited_given"] == 0.5 and pd.isna(unknown["unchanged_given"])


def failed(query_id):
    return answer(query_id, "", ["p1"], reason="error")


def test_a_failed_answer_was_asked_for_and_is_no_answer(encoder):
    row = one(encoder, {"p1": 1}, ["p1"], retrieved=failed("q"))
    assert row["asked"] and not row["answered"]


def test_a_failed_answer_cites_nothing_because_it_is_missing(encoder):
    row = one(encoder, {"p1": 1}, ["p1"], retrieved=failed("q"), none=answer("q"))
    assert pd.isna(row["cited_given"])


@pytest.mark.parametrize("broken", ["retrieved", "none", "both"])
def test_with_a_failed_answer_nobody_knows_what_is_unchanged(encoder, broken):
    good = answer("q", "Text. [p1]", ["p1"])
    row = one(
        encoder,
        {"p1": 1},
        ["p1"],
        retrieved=good if broken == "none" else failed("q"),
        none=good if broken == "retrieved" else failed("q"),
    )
    assert pd.isna(row["unchanged_given"])


def test_a_failed_answer_has_neither_measures_nor_a_form(encoder):
    whole = collection({"test": {name: {"p1": 1} for name in "abc"}})
    retrieved = {"a": answer("a", shown=["p1"]), "b": failed("b"), "c": answer("c", shown=["p1"])}
    asked = trial(whole, {name: ["p1"] for name in "abc"}, retrieved=retrieved)
    table = gather(whole, asked, offline_measures(whole, asked, encoder, None), encoder).set_index("query_id")
    assert table.loc["b", [f"{measure}_given" for measure in MEASURES]].isna().all()
    assert table["form"].isna().tolist() == table["usual_form"].isna().tolist() == [False, True, False]


def test_a_question_that_two_splits_hold_is_no_reason_to_fail(encoder):
    whole = collection({"train": {"a": {"p1": 1}, "b": {"p1": 1}}, "dev": {"a": {"p1": 1}}})
    retrieved = {name: answer(name, shown=["p1"]) for name in "ab"}
    asked = trial(whole, {name: ["p1"] for name in "ab"}, retrieved=retrieved)
    table = gather(whole, asked, offline_measures(whole, asked, encoder, None), encoder)
    assert set(table["query_id"]) == {"a", "b"} and table["format_given"].eq(1).all()


def test_special_is_the_mean_of_the_question_and_its_gold_passages(encoder):
    # The tiny encoder spells "title", "zebra" and "quux", and knows "bab" and "bed".
    def special(text, gold):
        return one(encoder, gold, [], Query("q", text))["special"]

    assert special("zebra quux", {}) == 1
    assert special("zebra quux", {"p1": 1}) == pytest.approx((1 + 1 / 3) / 2)
    assert special("bab bed", {"p1": 1, "p2": 1}) == pytest.approx((0 + 1 / 3) / 2)
    assert special("", {}) == 0


def test_words_and_gap_are_those_of_the_question(encoder):
    row = one(encoder, {"p1": 1}, ["p9"], Query("q", "Is  bab\na zebra?"))
    assert row["words"] == 4 and row["gap"] == 0.5


def formed(encoder, texts, formats=None, questions=None):
    names = [f"q{number}" for number in range(len(texts))]
    queries = [Query(name, text) for name, text in zip(names, questions or names, strict=True)]
    whole = collection({"test": {name: {"p1": 1} for name in names}}, *queries)
    retrieved = {name: answer(name, text, ["p1"]) for name, text in zip(names, texts, strict=True)}
    asked = trial(whole, {name: ["p1"] for name in names}, retrieved=retrieved)
    measures = offline_measures(whole, asked, encoder, None)
    if formats is not None:
        measures.loc[measures["measure"] == "format", "value"] = formats
    return gather(whole, asked, measures, encoder)[["form", "usual_form"]]


def test_an_answer_in_the_house_style_is_of_that_form_and_any_other_of_its_own(encoder):
    texts = ["Text. [p1]", "Text.", "- one\n- two", "```code```", "", "The documents do not say. [none]"]
    assert formed(encoder, texts)["form"].tolist() == [HOUSE, "plain", "list", "code", "empty", HOUSE]


def test_the_usual_form_is_that_of_the_other_questions(encoder):
    forms = formed(encoder, ["Text.", *["Text. [p1]"] * 6])
    assert forms["usual_form"].tolist() == [HOUSE] * 7
    forms = formed(encoder, ["Text.", "Text. [p1]"])
    assert forms["usual_form"].tolist() == [HOUSE, "plain"]


def test_the_usual_form_is_that_of_similar_questions(encoder):
    questions = [f"bab bed bid {number}" for number in range(6)] + [f"tog tug tun {number}" for number in range(6)]
    forms = formed(encoder, ["Text."] * 6 + ["Text. [p1]"] * 6, questions=questions)
    assert forms["usual_form"].tolist() == ["plain"] * 6 + [HOUSE] * 6


def test_one_answer_is_of_its_own_usual_form(encoder):
    assert formed(encoder, ["Text."]).to_numpy().tolist() == [["plain", "plain"]]


def test_an_answer_whose_form_was_not_measured_has_none_and_counts_for_no_other(encoder):
    forms = formed(encoder, ["Text."] * 4, formats=[np.nan, 1.0, np.nan, 1.0])
    assert forms["form"].isna().tolist() == [True, False, True, False]
    assert forms["usual_form"].dropna().tolist() == [HOUSE, HOUSE]


def test_questions_that_are_all_the_same_still_have_a_usual_form(encoder):
    forms = formed(encoder, ["Text. [p1]"] * 8, questions=["What?"] * 8)
    assert forms["usual_form"].tolist() == [HOUSE] * 8
