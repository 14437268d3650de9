import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.diagnosis.counterfactual import Trial
from ragbench.diagnosis.measures import (
    RELEVANT_COSINE,
    RELEVANT_SHARE,
    correctness_of,
    given_answers,
    judged_measures,
    measure_answers,
    offline_measures,
)
from ragbench.errors import RagbenchError
from ragbench.evaluation.answer_metrics import conforms
from ragbench.evaluation.judge import Judge
from ragbench.generation.answers import Answer
from ragbench.generation.prompts import REFUSAL
from ragbench.retrieval.encoder import Encoder, encode, open_encoder

PASSAGES = {
    "cats": "Cats sleep all day.",
    "dogs": "Dogs bark at night.",
    "fish": "Fish swim in water.",
    "birds": "Birds fly south.",
}
QUESTIONS = {
    "cats": Query("cats", "What do cats do?", "Cats sleep all day. [cats]"),
    "both": Query("both", "Who barks and who swims?", "Dogs bark. Fish swim.", needs=(("dogs",), ("fish",))),
    "bare": Query("bare", "Where do birds fly?"),
    "horses": Query("horses", "How old do horses get?", REFUSAL, tags=("unanswerable",), split="dev"),
}
QRELS = {"cats": {"cats": 1}, "both": {"dogs": 1, "fish": 1}, "bare": {"birds": 1}, "horses": {}}


@pytest.fixture
def encoder(tiny_encoder: Path) -> Encoder:
    return open_encoder(str(tiny_encoder), device="cpu", dtype="float32")


def collection_of(*queries: Query) -> Collection:
    rows = [(name, "", text, f"d-{name}") for name, text in PASSAGES.items()]
    qrels = {query.id: QRELS.get(query.id, {"cats": 1}) for query in queries}
    return Collection("small", corpus_from_rows(rows), {query.id: query for query in queries}, {"dev": qrels})


ANIMALS = collection_of(*QUESTIONS.values())


def said(query_id: str, text: str, *shown: str, reason: str = "stop") -> Answer:
    return Answer(query_id, text, shown, (), 30, 5, 0.1, reason)


def trial_of(collection: Collection = ANIMALS, **answers: list[Answer]) -> Trial:
    questions = {split: [collection.queries[name] for name in qrels] for split, qrels in collection.qrels.items()}
    by_id = {condition: {answer.query_id: answer for answer in found} for condition, found in answers.items()}
    return Trial(questions, {name: {} for name in collection.queries}, 3, by_id)  # type: ignore[arg-type]


FULL = trial_of(
    retrieved=[
        said("cats", "Cats sleep all day. [cats]", "cats", "fish"),
        said("both", "Dogs bark. Cats fly. [dogs]", "dogs"),
        said("bare", "Birds fly. [birds]", "birds"),
        said("horses", REFUSAL, "cats"),
    ],
    oracle=[said("cats", "Cats sleep. [cats]", "cats"), said("both", "Dogs bark. Fish swim.", "dogs", "fish")],
    none=[said("cats", "Cats sleep all day."), said("both", "Dogs bark.")],
)


def measured(trial: Trial, encoder: Encoder, collection: Collection = ANIMALS, **settings) -> pd.Series:
    table = offline_measures(collection, trial, encoder, None, **settings)
    assert list(table.columns) == ["condition", "query_id", "measure", "value"]
    assert table["value"].dtype == float
    return table.set_index(["condition", "query_id", "measure"])["value"]


def asked_of(found: pd.Series, measure: str) -> set[tuple[str, str]]:
    return {(condition, name) for condition, name, kind in found.index if kind == measure}


EVERY = {(condition, name) for condition, answers in FULL.answers.items() for name in answers}


def test_every_answer_has_form_refusal_and_relevance(encoder):
    found = measured(FULL, encoder)
    for measure in ("format", "refused", "relevance"):
        assert asked_of(found, measure) == EVERY
    assert found.between(0, 1).all()


def test_correctness_needs_a_reference_and_an_answerable_question(encoder):
    expected = {(condition, name) for condition, name in EVERY if name in ("cats", "both")}
    assert asked_of(measured(FULL, encoder), "correctness") == expected


def test_grounding_is_of_answers_that_were_shown_passages_and_are_no_refusals(encoder):
    expected = {(condition, name) for condition, name in EVERY if condition != "none" and name != "horses"}
    assert asked_of(measured(FULL, encoder), "grounding") == expected


def test_no_answer_has_a_measure_twice(encoder):
    assert measured(FULL, encoder).index.is_unique


def test_a_question_that_stands_in_two_splits_is_measured_once(encoder):
    """The reader allows it, and the table of evidence has one row and one value for each question."""
    both = Collection("small", ANIMALS.corpus, ANIMALS.queries, {"dev": QRELS, "test": {"cats": {"cats": 1}}})
    trial = trial_of(both, retrieved=[said("cats", "Cats sleep. [cats]", "cats")])
    assert measured(trial, encoder, both).index.is_unique


def test_a_right_answer_is_more_correct_than_one_that_is_half_wrong(encoder):
    found = measured(FULL, encoder).xs("correctness", level="measure")
    assert found["oracle", "both"] > found["retrieved", "both"] + 0.02  # all encodings of the tiny encoder are near
    assert found["retrieved", "cats"] > 0.99


@pytest.mark.parametrize("refusal", [REFUSAL, "Cats sleep all day is not mentioned in the documents. [cats]"])
def test_refusing_a_question_that_has_an_answer_is_wrong_however_near_its_words_come(encoder, refusal):
    found = measured(trial_of(retrieved=[said("cats", refusal, "cats")]), encoder)
    assert (found["retrieved", "cats", "refused"], found["retrieved", "cats", "correctness"]) == (1, 0)
    assert ("retrieved", "cats", "grounding") not in found


def test_an_empty_answer_is_wrong_and_has_no_relevance_or_grounding(encoder):
    found = measured(trial_of(retrieved=[said("cats", " ", "cats")]), encoder)["retrieved", "cats"]
    assert (found["correctness"], found["format"], found["refused"]) == (0, 0, 0)
    assert np.isnan(found["relevance"]) and np.isnan(found["grounding"])


def test_a_failed_answer_is_not_measured_and_never_zero(encoder):
    failed = trial_of(retrieved=[said("cats", "", "cats", reason="error"), said("both", "Dogs bark.", "dogs")])
    assert {name for _, name, _ in measured(failed, encoder).index} == {"both"}
    assert [asked.query.id for asked in given_answers(failed)] == ["both"]


def test_an_answer_cut_at_the_limit_is_measured(encoder):
    cut = trial_of(retrieved=[said("cats", "Cats sleep all", "cats", reason="length")])
    assert ("retrieved", "cats", "correctness") in measured(cut, encoder)


def test_answers_come_condition_by_condition_in_the_order_of_the_questions():
    found = [(asked.condition, asked.split, asked.query.id) for asked in given_answers(FULL)]
    names = {"retrieved": list(QUESTIONS), "oracle": ["cats", "both"], "none": ["cats", "both"]}
    assert found == [(condition, "dev", name) for condition, ids in names.items() for name in ids]


def test_an_answer_to_a_question_that_was_not_asked_is_left_out():
    assert list(given_answers(trial_of(retrieved=[said("other", "Yes.")]))) == []


@pytest.mark.parametrize("answers", [{}, {"retrieved": [], "oracle": [], "none": []}])
def test_zero_answers_give_an_empty_table(encoder, answers):
    assert len(measured(trial_of(**answers), encoder)) == 0


def test_without_questions_the_table_is_empty(encoder):
    assert len(offline_measures(ANIMALS, Trial({}, {}, 3, {}), encoder, None)) == 0


def test_a_single_question_has_no_other_to_be_nearer_to(encoder):
    alone = collection_of(QUESTIONS["cats"])
    found = measured(trial_of(alone, retrieved=[said("cats", "Cats sleep.", "cats")]), encoder, alone)
    assert np.isnan(found["retrieved", "cats", "relevance"])


def test_unanswerable_questions_only_have_no_correctness(encoder):
    horses = collection_of(QUESTIONS["horses"])
    found = measured(trial_of(horses, retrieved=[said("horses", "They get 30. [cats]", "cats")]), encoder, horses)
    assert asked_of(found, "correctness") == set()
    assert found["retrieved", "horses", "refused"] == 0


@pytest.mark.parametrize("reference", ["", "  ", "[cats]"])
def test_a_reference_that_says_nothing_is_none(encoder, reference):
    """Nobody wrote one: the answers are not wrong, their correctness is not known."""
    blank = collection_of(Query("cats", "What do cats do?", reference))
    found = measured(trial_of(blank, retrieved=[said("cats", "Cats sleep.", "cats")]), encoder, blank)
    assert ("retrieved", "cats", "correctness") not in found


def test_the_house_style_is_a_parameter(encoder):
    found = measured(FULL, encoder, answer_format=r".*\.").xs("format", level="measure")
    assert found["none", "both"] == 1 and found["retrieved", "cats"] == 0
    usual = measured(FULL, encoder).xs("format", level="measure")
    assert all(usual[asked.condition, asked.query.id] == conforms(asked.answer.answer) for asked in given_answers(FULL))


def test_an_answer_has_the_same_measures_whatever_else_was_answered(encoder):
    together = measured(FULL, encoder)
    alone = measured(trial_of(oracle=[FULL.answers["oracle"]["both"]]), encoder)
    for measure, value in alone["oracle", "both"].items():
        assert together["oracle", "both", measure] == pytest.approx(value, abs=1e-5)


def test_correctness_alone_is_the_same_as_among_all_measures(encoder):
    table = offline_measures(ANIMALS, FULL, encoder, None)
    among = table[table["measure"] == "correctness"].reset_index(drop=True)
    pd.testing.assert_frame_equal(correctness_of(ANIMALS, FULL, encoder), among)


def test_words_of_the_gold_passages_are_not_taken_for_made_up(encoder):
    answers = [said("cats", "Cats sleep all day, dogs bark at night.", "cats")]
    queries = {"cats": QUESTIONS["cats"]}
    wide = Collection("small", ANIMALS.corpus, queries, {"dev": {"cats": {"cats": 1, "dogs": 1}}})
    narrow = Collection("small", ANIMALS.corpus, queries, {"dev": {"cats": {"cats": 1, "dogs": 0}}})
    found = [
        correctness_of(each, trial_of(each, retrieved=answers), encoder)["value"].item() for each in (wide, narrow)
    ]
    assert found[0] > found[1]


# Judged by a server


def parts(text: str) -> list[str]:
    return [part.strip() for part in re.findall(r"[^.]+\.", text)]


def verdict(prompt: str, form: str) -> dict:
    """Judge as a perfect judge would whose world is made of sentences that are equal or not."""
    given = json.loads(prompt.rpartition("\ninput: ")[2].removesuffix("\nOutput: "))
    if form == "StatementGeneratorOutput":
        return {"statements": [part for part in parts(given["answer"]) if "documents do not say" not in part]}
    if form == "NLIStatementOutput":
        found = [(part, int(part in given["context"])) for part in given["statements"]]
        return {"statements": [{"statement": part, "reason": "", "verdict": value} for part, value in found]}
    if form == "AnswerRelevanceOutput":
        evasive = "do not say" in given["response"]
        return {"question": "" if evasive else given["response"], "noncommittal": int(evasive)}
    if form == "ContextPrecisionOutput":
        return {"reason": "", "verdict": int(any(part in given["context"] for part in parts(given["answer"])))}
    if form == "ContextRecallOutput":
        found = [(part, int(part in given["context"])) for part in parts(given["answer"])]
        return {"classifications": [{"statement": part, "reason": "", "attributed": value} for part, value in found]}
    ours, theirs = given["answer"], given["ground_truth"]
    kinds = {
        "TP": [s for s in ours if s in theirs],
        "FP": [s for s in ours if s not in theirs],
        "FN": [s for s in theirs if s not in ours],
    }
    return {kind: [{"statement": s, "reason": ""} for s in found] for kind, found in kinds.items()}


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[Judge, list[str]]]]:
    """Return a function that starts a server of this judge, which gives 500 for prompts with certain words."""
    servers = []

    def start(failing: str = "\0") -> tuple[Judge, list[str]]:
        prompts: list[str] = []

        def answer(handler: BaseHTTPRequestHandler) -> None:
            body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
            prompt = body["messages"][0]["content"]
            prompts.append(prompt)
            form = re.findall(r'"title": "(\w+)", "type": "object"\}Do not use', prompt)[0]
            message = {"role": "assistant", "content": json.dumps(verdict(prompt, form))}
            reply = {"id": "1", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
            data = json.dumps(reply).encode()
            handler.send_response(500 if failing in prompt.rpartition("\ninput: ")[2] else 200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)

        kind = type("Handler", (BaseHTTPRequestHandler,), {"do_POST": answer, "log_message": lambda *_: None})
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), kind))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{servers[-1].server_port}/v1"
        return Judge("some-model", url, max_retries=0, timeout=10.0), prompts

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAGBENCH_JUDGE_API_KEY", "RAGBENCH_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def judged(trial: Trial, llm: Judge, encoder: Encoder, collection: Collection = ANIMALS):
    estimated = offline_measures(collection, trial, encoder, None)
    table, judgements = judged_measures(collection, trial, estimated, llm, encoder)
    assert list(table.columns) == ["condition", "query_id", "measure", "value"]
    return table.set_index(["condition", "query_id", "measure"])["value"], judgements


def cosine(encoder: Encoder, one: str, other: str, kind) -> float:
    a, b = encode(encoder, [one, other], kind)
    return float(a @ b)


def test_the_judges_verdicts_take_the_place_of_the_estimates(serve, encoder):
    found, _ = judged(FULL, serve()[0], encoder)
    answer, reference = FULL.answers["retrieved"]["both"].answer, QUESTIONS["both"].answer or ""
    similarity = cosine(encoder, answer, reference, "passage")
    assert found["retrieved", "both", "correctness"] == pytest.approx(0.75 * 1 / 2 + 0.25 * similarity)
    assert found["retrieved", "both", "grounding"] == 0  # "Dogs bark." is no sentence of "Dogs bark at night."
    assert found["retrieved", "cats", "grounding"] == 1
    question = QUESTIONS["both"].text
    assert found["retrieved", "both", "relevance"] == pytest.approx(
        cosine(encoder, question, answer, "query"), abs=1e-5
    )


def test_form_and_refusal_stay_as_measured(serve, encoder):
    before = measured(FULL, encoder)
    found, _ = judged(FULL, serve()[0], encoder)
    for measure in ("format", "refused"):
        assert found.xs(measure, level="measure").to_dict() == before.xs(measure, level="measure").to_dict()


def test_each_condition_is_judged_by_what_can_be_said_of_it(serve, encoder):
    found, judgements = judged(FULL, serve()[0], encoder)
    shown = {"answer_correctness", "faithfulness", "answer_relevancy"}
    assert {condition: set(each.scores["metric"]) for condition, each in judgements.items()} == {
        "retrieved": {*shown, "llm_context_precision", "llm_context_recall"},
        "oracle": shown,
        "none": {"answer_correctness"},
    }
    assert {kind for condition, _, kind in found.index if condition == "none"} == {"correctness", "format", "refused"}
    assert {kind for *_, kind in found.index} == {"correctness", "grounding", "relevance", "format", "refused"}
    assert found.index.is_unique


def test_questions_without_a_reference_or_an_answer_in_the_documents_have_no_judged_correctness(serve, encoder):
    found, judgements = judged(FULL, serve()[0], encoder)
    assert {name for _, name in asked_of(found, "correctness")} == {"cats", "both"}
    needing = judgements["retrieved"].scores.set_index("metric").loc["llm_context_recall", "query_id"]
    assert set(needing) == {"cats", "both"}


def test_what_the_judge_could_not_score_is_missing_and_no_estimate_stands_in(serve, encoder):
    found, judgements = judged(FULL, serve(failing="Dogs bark")[0], encoder)
    for condition in ("retrieved", "oracle", "none"):
        assert np.isnan(found[condition, "both", "correctness"])
        assert found[condition, "cats", "correctness"] > 0
    assert np.isnan(found["retrieved", "both", "grounding"])
    scores = judgements["retrieved"].scores.set_index(["metric", "query_id"])
    assert scores.loc[("answer_correctness", "both"), "reason"] == "failed call"


def test_failed_answers_are_not_sent_to_the_judge(serve, encoder):
    llm, prompts = serve()
    failed = trial_of(retrieved=[said("cats", "Cats purr.", "cats", reason="error")])
    found, judgements = judged(failed, llm, encoder)
    assert (len(found), prompts) == (0, [])
    assert all(each.calls == 0 and each.scores.empty for each in judgements.values())


def test_zero_answers_cost_nothing(serve, encoder):
    llm, prompts = serve()
    found, judgements = judged(trial_of(), llm, encoder)
    assert (len(found), prompts, list(judgements)) == (0, [], ["retrieved", "oracle", "none"])


@pytest.mark.parametrize("answer", ["", REFUSAL])
def test_empty_answers_and_refusals_are_not_paid_for(serve, encoder, answer):
    llm, prompts = serve()
    silent = trial_of(**{condition: [said("cats", answer, "cats")] for condition in ("retrieved", "oracle", "none")})
    found, judgements = judged(silent, llm, encoder)
    assert prompts == [] and all(each.scores.empty for each in judgements.values())
    assert [found[condition, "cats", "correctness"] for condition in judgements] == [0, 0, 0]
    assert asked_of(found, "grounding") == asked_of(found, "relevance") == set()


@pytest.mark.parametrize("answer", ["", REFUSAL])
def test_refusing_what_has_no_answer_or_no_reference_is_not_wrong_for_a_judge(serve, encoder, answer):
    silent = trial_of(retrieved=[said("horses", answer, "cats"), said("bare", answer, "birds")])
    assert asked_of(judged(silent, serve()[0], encoder)[0], "correctness") == set()


@pytest.mark.parametrize("answer", ["", REFUSAL])
def test_no_answer_where_there_is_one_is_wrong_for_a_judge_too(serve, encoder, answer):
    """RAGAS finds no statements to judge. Left missing, a system that refuses half its questions would be all right."""
    silent = trial_of(retrieved=[said("cats", answer, "cats"), FULL.answers["retrieved"]["both"]])
    found, _ = judged(silent, serve()[0], encoder)
    assert found["retrieved", "cats", "correctness"] == 0
    assert found["retrieved", "both", "correctness"] > 0


def test_the_same_trial_is_judged_twice_and_paid_once(serve, encoder):
    llm, prompts = serve()
    first, _ = judged(FULL, llm, encoder)
    sent = len(prompts)
    second, judgements = judged(FULL, llm, encoder)
    pd.testing.assert_series_equal(first, second)
    assert len(prompts) == sent and sum(each.calls for each in judgements.values()) == 0


def test_the_cap_on_spending_holds_over_all_conditions_together(serve, encoder):
    llm, prompts = serve()
    dear = replace(llm, price_input=1.0, price_output=1.0, concurrency=1)
    _, judgements = judged(FULL, replace(dear, max_cost=1e-9), encoder)
    # One call at a time: the first exceeds the cap, and no condition after it may start afresh.
    assert len(prompts) == 1 and [each.calls for each in judgements.values()] == [1, 0, 0]
    assert "spending cap" in set(judgements["none"].scores["reason"])


def test_measuring_by_a_judge_tells_its_coverage_and_cost(serve, encoder):
    llm, prompts = serve(failing="Dogs bark")
    found = measure_answers(ANIMALS, FULL, encoder, kind="endpoint", llm=llm)
    coverage = found.reliability.set_index(["condition", "metric"])
    assert coverage.loc[("retrieved", "answer_correctness"), ["scored", "n"]].tolist() == [1, 2]
    assert "failed call" in coverage.loc[("none", "answer_correctness"), "reasons"]
    assert "some-model" in found.spent
    assert (found.supported_from, found.relevant_from) == (0.5, RELEVANT_COSINE)
    assert len(prompts) > 0


def test_measuring_offline_tells_its_agreement_with_people_and_asks_nobody(encoder, free_port: int):
    llm = Judge("m", f"http://127.0.0.1:{free_port}/v1")
    found = measure_answers(ANIMALS, FULL, encoder, kind="offline", llm=llm)
    pd.testing.assert_frame_equal(found.table, offline_measures(ANIMALS, FULL, encoder, None))
    assert found.spent.startswith("No judge") and found.reliability["auroc"].between(0.5, 1).all()
    assert 0 < found.supported_from < 1 and found.relevant_from == RELEVANT_SHARE


def test_an_unknown_judge_is_an_error_that_names_the_two(encoder):
    with pytest.raises(RagbenchError, match=r"'human'.*offline.*endpoint"):
        measure_answers(ANIMALS, FULL, encoder, kind="human", llm=Judge("", ""))
