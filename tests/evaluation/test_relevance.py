from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragbench.evaluation.relevance import relevance
from ragbench.retrieval.encoder import Encoder, encode, open_encoder

QUESTIONS = [
    "What do cats do all day?",
    "Who barks at night?",
    "Where do birds fly in winter?",
    "How is a directory tree copied?",
    "Which port does a web server listen on?",
    "How old do horses get?",
]
ANSWERS = [
    "Cats sleep all day. [p1]",
    "Dogs bark at night.",
    "Birds fly south in winter.",
    "shutil.copytree copies a directory tree.",
    "A web server listens on port 80.",
    "Horses live for 30 years.",
]


@pytest.fixture
def encoder(tiny_encoder: Path) -> Encoder:
    return open_encoder(str(tiny_encoder), device="cpu", dtype="float32")


@pytest.fixture
def real_encoder(real_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    monkeypatch.setenv("RAGBENCH_CACHE", str(real_cache))
    return open_encoder("all-MiniLM-L6-v2", device="cpu", dtype="float32")


def one(encoder: Encoder, answer: str, question: str = QUESTIONS[0], others: list[str] | None = None) -> float | None:
    [value] = relevance([question], [answer], QUESTIONS if others is None else others, encoder)
    return value


def test_answers_are_nearest_to_their_own_questions(real_encoder):
    assert relevance(QUESTIONS, ANSWERS, QUESTIONS, real_encoder) == [1.0] * 6


def test_answers_to_other_questions_are_not(real_encoder):
    values = relevance(QUESTIONS, ANSWERS[1:] + ANSWERS[:1], QUESTIONS, real_encoder)
    assert max(values) < 1 and np.mean(values) < 0.7


def test_a_wrong_answer_to_the_point_is_relevant(real_encoder):
    assert one(real_encoder, "Cats hunt elephants all day.") == 1


def test_the_value_is_the_share_of_other_questions_that_are_farther(encoder):
    answers = ["bab dek gip", "Cats sleep.", "kop"]
    said, asked = encode(encoder, answers, "passage"), encode(encoder, QUESTIONS, "query")
    for text, vector in zip(answers, said, strict=True):
        for own, question in enumerate(QUESTIONS):
            rest = [vector @ asked[place] < vector @ asked[own] for place in range(6) if place != own]
            assert one(encoder, text, question) == pytest.approx(np.mean(rest))


def test_what_says_nothing_of_any_question_is_about_one_half_on_average(encoder):
    values = relevance(QUESTIONS, ["bab dek gip kop."] * 6, QUESTIONS, encoder)
    assert np.mean(values) == pytest.approx(0.5)  # the same text has every rank once
    assert sorted(values) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])


@pytest.mark.parametrize("answer", ["", "  ", "[p1]", "[p1] [p2].", "...", "?!", "\n- \n"])
def test_an_answer_without_a_word_has_no_relevance(encoder, answer):
    assert one(encoder, answer) is None
    first, empty, last = relevance(QUESTIONS[:3], [ANSWERS[0], answer, ANSWERS[2]], QUESTIONS, encoder)
    assert empty is None and first is not None and last is not None


def test_citations_make_no_difference(encoder):
    assert one(encoder, "Cats sleep. [p1] [p2]") == one(encoder, "Cats sleep.")


def test_without_another_question_there_is_nothing_to_compare_with(encoder):
    assert one(encoder, "Cats sleep.", others=[]) is None
    assert one(encoder, "Cats sleep.", others=[QUESTIONS[0]] * 3) is None


def test_no_answers_have_no_relevances(encoder):
    assert relevance([], [], QUESTIONS, encoder) == []
    assert relevance([], [], [], encoder) == []


def test_a_question_need_not_be_among_those_compared_with(encoder):
    assert one(encoder, "Cats sleep.", others=QUESTIONS[1:]) == one(encoder, "Cats sleep.")


def test_repeated_questions_count_once(encoder):
    assert one(encoder, "Cats sleep.", others=QUESTIONS + QUESTIONS[1:3] * 4) == one(encoder, "Cats sleep.")


@pytest.mark.parametrize("change", [str.upper, lambda text: f"{text} ", lambda text: text.replace(" ", "  ")])
def test_the_same_question_in_another_spelling_is_no_other_question(real_encoder, change):
    """Its embedding is the same, so that which of the two is nearer is a matter of rounding."""
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        assert one(real_encoder, answer, question, [*QUESTIONS, change(question)]) == 1


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(6)), kept=st.integers(1, 6))
def test_neither_order_nor_other_answers_matter(encoder, order, kept):
    values = relevance(QUESTIONS, ANSWERS, QUESTIONS, encoder)
    chosen = order[:kept]
    again = relevance(
        [QUESTIONS[i] for i in chosen], [ANSWERS[i] for i in chosen], [QUESTIONS[i] for i in order], encoder
    )
    assert again == [values[i] for i in chosen]
    assert all(value is not None and 0 <= value <= 1 for value in values)
