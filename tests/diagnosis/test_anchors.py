import random
from pathlib import Path

import numpy as np
import pytest

from ragbench.collection.schema import Collection, Query, corpus_from_rows, passages
from ragbench.diagnosis.anchors import FEWEST, grounding_bar
from ragbench.diagnosis.counterfactual import Trial
from ragbench.evaluation.grounding import AnswerWithContexts, grounding
from ragbench.generation.answers import Answer
from ragbench.retrieval.encoder import Encoder, open_encoder

THINGS = ["tower", "river", "castle", "garden", "harbour", "bridge", "market", "temple", "mill", "forest", "palace",
          "library", "station", "quarry", "orchard", "chapel"]  # fmt: skip
PLACES = ["Bordo", "Kelim", "Tasno", "Pernal", "Gastol", "Miranto", "Ruxel", "Dolba", "Senkor", "Albit", "Ostran",
          "Lemka", "Fumor", "Nastel", "Zubin", "Hortal"]  # fmt: skip


@pytest.fixture
def encoder(tiny_encoder: Path) -> Encoder:
    return open_encoder(str(tiny_encoder), device="cpu", dtype="float32")


def text_of(number: int) -> str:
    year = 1100 + 37 * number
    return f"The old {THINGS[number]} of {PLACES[number]} was built in {year}. It holds {3 * number + 40} rooms."


def reference_of(number: int) -> str:
    return f"The {THINGS[number]} of {PLACES[number]} was built in {1100 + 37 * number}."


def world(questions: list[tuple[int, str | None]], extra: str = "") -> tuple[Collection, Trial]:
    """Return a collection with a question for each (passage, reference), and a trial that answered all of them."""
    rows = [(f"p{i}", "", text_of(i) + extra, f"d{i}") for i in range(len(THINGS))]
    queries = {
        f"q{place}": Query(f"q{place}", f"What of {PLACES[i]}?", text) for place, (i, text) in enumerate(questions)
    }
    qrels = {f"q{place}": {f"p{number}": 1} for place, (number, _) in enumerate(questions)}
    collection = Collection("places", corpus_from_rows(rows), queries, {"dev": qrels})
    answered = {name: Answer(name, "Yes.", (), (), 1, 1, 0.1, "stop") for name in queries}
    return collection, Trial({"dev": list(queries.values())}, {}, 3, {"retrieved": answered})


PLAIN = [(number, reference_of(number)) for number in range(12)]


def scores_under(collection: Collection, encoder: Encoder, shift: int) -> list[float]:
    """Return the grounding of each reference under the gold passage of the question `shift` places on."""
    queries = list(collection.queries.values())
    gold = [next(iter(collection.qrels["dev"][query.id])) for query in queries]
    known = passages(collection, gold)
    items = [
        AnswerWithContexts(query.text, query.answer or "", (known[gold[(place + shift) % len(gold)]].full_text,))
        for place, query in enumerate(queries)
    ]
    return [found.score or 0.0 for found in grounding(items, encoder, model=None)]


def test_the_bar_parts_references_under_their_own_passages_from_those_under_others(encoder):
    collection, trial = world(PLAIN)
    bar = grounding_bar(collection, trial, encoder, None)
    assert bar is not None
    assert max(scores_under(collection, encoder, 5)) < bar < min(scores_under(collection, encoder, 0))


def test_the_bar_lies_half_way_in_log_odds(encoder):
    collection, trial = world(PLAIN)
    bar = grounding_bar(collection, trial, encoder, None)
    own, other = (np.median(scores_under(collection, encoder, shift)) for shift in (0, 1))
    odds = [value / (1 - value) for value in (own, bar, other)]
    assert odds[1] == pytest.approx((odds[0] * odds[2]) ** 0.5, rel=0.01)


def test_the_bar_comes_down_where_references_are_free_in_their_words(encoder):
    free = [
        (n, f"{PLACES[n]} has one, {1100 + 37 * n} being when people say masons raised it there.") for n in range(12)
    ]
    collection, trial = world(free)
    bar = grounding_bar(collection, trial, encoder, None)
    plain = grounding_bar(*world(PLAIN), encoder, None)
    assert bar is not None and plain is not None and bar < plain
    assert np.median(scores_under(collection, encoder, 0)) > bar


@pytest.mark.parametrize("left", [0, 1, FEWEST - 1])
def test_too_few_references_give_no_bar(encoder, left):
    assert grounding_bar(*world(PLAIN[:left]), encoder, None) is None
    assert grounding_bar(*world([(i, text if i < left else None) for i, text in PLAIN]), encoder, None) is None


def test_just_enough_references_give_one(encoder):
    assert grounding_bar(*world(PLAIN[:FEWEST]), encoder, None) is not None


def test_questions_that_were_not_answered_are_not_used(encoder):
    collection, trial = world(PLAIN)
    few = {name: answer for name, answer in trial.answers["retrieved"].items() if name < "q5"}
    assert len(few) < FEWEST
    assert grounding_bar(collection, Trial(trial.questions, {}, 3, {"retrieved": few}), encoder, None) is None
    assert grounding_bar(collection, Trial(trial.questions, {}, 3, {}), encoder, None) is None


def test_references_that_say_nothing_but_citations_do_not_count(encoder):
    cited = [(number, f"[p{number}]") for number in range(12)]
    assert grounding_bar(*world(cited), encoder, None) is None
    assert grounding_bar(*world([*cited, *PLAIN[:3]]), encoder, None) is None
    mixed = grounding_bar(*world([*PLAIN, *cited]), encoder, None)
    assert mixed is not None and 0 < mixed < 1


def test_neighbouring_questions_about_the_same_passage_do_not_stand_for_unsupported(encoder):
    """As in SQuAD, where some five questions to a passage follow each other."""
    several = [(number, reference_of(number)) for number in range(4) for _ in range(4)]
    collection, trial = world(several)
    bar = grounding_bar(collection, trial, encoder, None)
    assert bar is not None
    assert min(scores_under(collection, encoder, 0)) > bar > max(scores_under(collection, encoder, 4))


def test_where_all_questions_have_one_gold_passage_nothing_can_be_compared(encoder):
    assert grounding_bar(*world([(0, reference_of(0))] * 12), encoder, None) is None


def test_references_that_their_passages_do_not_support_give_no_bar(encoder):
    """Labels of the wrong passages: half of all answers would be called invented by chance."""
    chance = random.Random(1)
    wrong = [(number, reference_of((number + 3 + chance.randrange(6)) % 12)) for number in range(12)]
    collection, trial = world(wrong)
    own, other = (np.median(scores_under(collection, encoder, shift)) for shift in (0, 1))
    assert own <= other + 0.05
    assert grounding_bar(collection, trial, encoder, None) is None


def test_the_bar_is_the_same_every_time(encoder):
    assert grounding_bar(*world(PLAIN), encoder, None) == grounding_bar(*world(PLAIN), encoder, None)
