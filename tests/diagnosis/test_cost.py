import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragbench.collection.schema import Collection, Query, corpus_from_rows, passage_texts
from ragbench.diagnosis.cost import (
    NEGATIVES,
    THIS_MACHINE,
    Assumptions,
    Workload,
    labelling,
    query_costs,
    reckon,
    training_table,
    tuning_cost,
    workload,
)
from ragbench.diagnosis.counterfactual import Trial
from ragbench.diagnosis.throughput import Throughput
from ragbench.errors import RagbenchError
from ragbench.generation import endpoint
from ragbench.generation.answers import Answer
from ragbench.generation.generate import Generator
from ragbench.retrieval.encoder import open_encoder, parameter_count, token_counts
from ragbench.retrieval.retrieve import Retriever

WORK = Workload(
    labels=200,
    prompt_tokens=600.0,
    answer_tokens=60.0,
    reference_tokens=40.0,
    seconds=0.5,
    retriever_parameters=20_000_000,
    passage_tokens=500.0,
)
SPEED = Throughput("cpu", "float32", parameters=100_000_000, forward=400.0, lora=100.0, full=50.0)
ASSUMED = Assumptions(devices={THIS_MACHINE: [0.0, 0.1], "A100": [312.0, 2.0]}, utilisation=0.25, setup_hours=0.5)
EXAMPLES = 500  # `labels_wanted`
TOKENS = EXAMPLES * 3 * 640


def hours(table, component, method, device):
    [value] = table[(table["component"] == component) & (table["method"] == method) & (table["device"] == device)][
        "hours"
    ]
    return value


# Training


def test_every_component_method_and_device_has_a_row():
    table = training_table(WORK, SPEED, ASSUMED)
    assert list(table.columns) == ["component", "method", "device", "hours", "cost", "basis"]
    jobs = [("retriever", "full"), ("generator", "LoRA"), ("generator", "QLoRA"), ("generator", "full")]
    expected = [(*job, device) for device in ASSUMED.devices for job in jobs]
    assert list(table[["component", "method", "device"]].itertuples(index=False, name=None)) == expected
    assert table[["hours", "cost"]].gt(0).all(axis=None) and table["basis"].str.len().gt(0).all()


def test_another_device_is_reckoned_from_operations_usable_speed_and_the_set_up():
    table = training_table(WORK, SPEED, ASSUMED)
    usable = 312e12 * 0.25
    assert hours(table, "generator", "full", "A100") == pytest.approx(6 * 1e8 * TOKENS / usable / 3600 + 0.5)
    assert hours(table, "generator", "LoRA", "A100") == pytest.approx(4 * 1e8 * TOKENS / usable / 3600 + 0.5)
    assert hours(table, "generator", "QLoRA", "A100") == pytest.approx(1.35 * 4 * 1e8 * TOKENS / usable / 3600 + 0.5)
    pairs = EXAMPLES * 3 * 500
    assert hours(table, "retriever", "full", "A100") == pytest.approx(6 * 2e7 * pairs / usable / 3600 + 0.5)


def test_this_machine_is_reckoned_from_what_was_measured():
    table = training_table(WORK, SPEED, ASSUMED)
    assert hours(table, "generator", "full", THIS_MACHINE) == pytest.approx(TOKENS / 50 / 3600)
    assert hours(table, "generator", "LoRA", THIS_MACHINE) == pytest.approx(TOKENS / 100 / 3600)
    assert hours(table, "generator", "QLoRA", THIS_MACHINE) == pytest.approx(1.35 * TOKENS / 100 / 3600)
    # A fifth of the generator's parameters: five times as fast.
    assert hours(table, "retriever", "full", THIS_MACHINE) == pytest.approx(EXAMPLES * 3 * 500 / 250 / 3600)


def test_the_first_number_of_this_machine_is_not_used():
    other = replace(ASSUMED, devices=ASSUMED.devices | {THIS_MACHINE: [999.0, 0.1]})
    assert training_table(WORK, SPEED, other).equals(training_table(WORK, SPEED, ASSUMED))


def test_the_cost_is_the_hours_times_the_price_of_the_device():
    table = training_table(WORK, SPEED, ASSUMED)
    prices = table["device"].map({name: price for name, (_, price) in ASSUMED.devices.items()})
    assert table["cost"].tolist() == pytest.approx((table["hours"] * prices).tolist())


def test_more_labels_than_wanted_are_all_trained_on():
    table = training_table(replace(WORK, labels=1500), SPEED, ASSUMED)
    assert hours(table, "generator", "LoRA", THIS_MACHINE) == pytest.approx(3 * TOKENS / 100 / 3600)


def test_what_does_not_fit_this_machine_is_missing_and_says_why():
    table = training_table(WORK, replace(SPEED, full=None), ASSUMED).set_index(["component", "method", "device"])
    for job in (("generator", "full"), ("retriever", "full")):
        row = table.loc[(*job, THIS_MACHINE)]
        assert math.isnan(row["hours"]) and math.isnan(row["cost"]) and "not fit" in row["basis"]
        assert table.loc[(*job, "A100")]["hours"] > 0
    assert table.loc[("generator", "LoRA", THIS_MACHINE)]["hours"] > 0


def test_of_a_served_generator_only_the_retriever_is_projected():
    table = training_table(WORK, None, ASSUMED)
    assert set(table["component"]) == {"retriever"}
    assert hours(table, "retriever", "full", "A100") > 0
    assert math.isnan(hours(table, "retriever", "full", THIS_MACHINE))
    assert "nothing was measured" in table.set_index("device").loc[THIS_MACHINE]["basis"]


def test_without_answers_the_generators_training_is_missing_not_zero():
    nothing = replace(WORK, prompt_tokens=math.nan, answer_tokens=math.nan, reference_tokens=math.nan, seconds=math.nan)
    table = training_table(nothing, SPEED, ASSUMED)
    assert table[table["component"] == "generator"][["hours", "cost"]].isna().all(axis=None)
    assert table[table["component"] == "retriever"][["hours", "cost"]].notna().all(axis=None)


def test_a_device_without_a_speed_is_an_error_that_names_it():
    with pytest.raises(RagbenchError, match="my card"):
        training_table(WORK, SPEED, replace(ASSUMED, devices={"my card": [0.0, 1.0]}))


@given(st.floats(0.1, 50), st.floats(0.01, 1), st.integers(0, 5000), st.floats(1, 3000))
@settings(deadline=None, max_examples=40)
def test_training_time_goes_with_the_tokens_and_against_the_speed(epochs, utilisation, labels, prompt):
    assumed = replace(ASSUMED, epochs=epochs, utilisation=utilisation, setup_hours=0.0)
    work = replace(WORK, labels=labels, prompt_tokens=prompt)
    table = training_table(work, SPEED, assumed)
    twice = training_table(work, SPEED, replace(assumed, epochs=2 * epochs))
    assert twice["hours"].tolist() == pytest.approx((2 * table["hours"]).tolist())
    for device in assumed.devices:
        lora, qlora, full = (hours(table, "generator", method, device) for method in ("LoRA", "QLoRA", "full"))
        assert 0 < lora < full and qlora == pytest.approx(1.35 * lora)
    slower = training_table(work, SPEED, replace(assumed, utilisation=utilisation / 2))
    assert hours(slower, "generator", "LoRA", "A100") == pytest.approx(2 * hours(table, "generator", "LoRA", "A100"))
    assert hours(slower, "generator", "LoRA", THIS_MACHINE) == hours(table, "generator", "LoRA", THIS_MACHINE)


# Labels


def test_only_the_labels_that_are_missing_are_paid_for():
    assumed = Assumptions(labels_wanted=500, minutes_per_label=6.0, price_per_hour=40.0)
    assert labelling(replace(WORK, labels=200), assumed) == (300, 30.0, 1200.0)
    assert labelling(replace(WORK, labels=0), assumed) == (500, 50.0, 2000.0)
    assert labelling(replace(WORK, labels=500), assumed) == labelling(replace(WORK, labels=900), assumed) == (0, 0, 0)


# Queries


def test_a_thousand_queries_here_cost_their_time():
    table = query_costs(WORK, ASSUMED).set_index("system")
    before, after = table.loc["as it is"], table.loc["with a tuned generator"]
    assert before["seconds"] == 0.5 and before["cost of 1000 queries"] == pytest.approx(1000 * 0.5 / 3600 * 0.1)
    assert after["seconds"] == pytest.approx(0.5 * 640 / 660)
    assert after["cost of 1000 queries"] == pytest.approx(1000 * after["seconds"] / 3600 * 0.1)


@pytest.mark.parametrize("prices", [(2.0, 6.0), (2.0, 0.0), (0.0, 6.0)])
def test_a_thousand_queries_to_a_server_cost_their_tokens(prices):
    read, write = prices
    table = query_costs(WORK, replace(ASSUMED, price_input=read, price_output=write)).set_index("system")
    costs = table["cost of 1000 queries"]
    assert costs["as it is"] == pytest.approx(1000 * (600 * read + 60 * write) / 1e6)
    assert costs["with a tuned generator"] == pytest.approx(1000 * (600 * read + 40 * write) / 1e6)


def test_references_longer_than_the_answers_make_queries_dearer():
    table = query_costs(replace(WORK, reference_tokens=200.0), ASSUMED).set_index("system")
    assert table["seconds"]["with a tuned generator"] > table["seconds"]["as it is"]
    assert table["cost of 1000 queries"].is_monotonic_increasing


def test_without_references_the_cost_afterwards_is_missing_not_zero():
    table = query_costs(replace(WORK, reference_tokens=math.nan), ASSUMED).set_index("system")
    assert table.loc["with a tuned generator"].isna().all() and table.loc["as it is"].notna().all()


def test_without_answers_the_cost_of_a_query_is_missing_not_zero():
    nothing = replace(WORK, prompt_tokens=math.nan, answer_tokens=math.nan, seconds=math.nan)
    assert query_costs(nothing, ASSUMED)[["seconds", "cost of 1000 queries"]].isna().all(axis=None)


def test_without_a_price_of_this_machine_the_cost_of_a_query_is_missing_not_zero():
    table = query_costs(WORK, replace(ASSUMED, devices={"A100": [312.0, 2.0]}))
    assert table["seconds"].notna().all() and table["cost of 1000 queries"].isna().all()


# What the run measured


QUERIES = [
    Query("q1", "What do cats do?", "They sleep all day."),
    Query("q2", "Who barks?", "Dogs."),
    Query("q3", "Who swims?"),
    Query("q4", "How old do horses get?", "The documents do not say.", tags=("unanswerable",)),
]
CORPUS = corpus_from_rows((f"p{n}", f"Title {n}", "bab bed. " * n, "d") for n in range(1, 6))
GOLD = {"q1": {"p1": 1}, "q2": {"p2": 1}, "q3": {"p3": 1}, "q4": {}}


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return open_encoder(str(tiny_encoder), device="cpu", dtype="float32")


def collection(qrels=None):
    named = {query.id: query for query in QUERIES}
    return Collection("hand-made", CORPUS, named, {"train": GOLD} if qrels is None else qrels)


def trial(*answers):
    return Trial({"train": QUERIES}, {}, 3, {"retrieved": {answer.query_id: answer for answer in answers}})


def answer(query_id, read, written, seconds, reason="stop"):
    return Answer(query_id, "Text.", ("p1",), (), read, written, seconds, reason)


ANSWERED = trial(answer("q1", 100, 10, 1.0), answer("q2", 300, 30, 2.0))


def words(text):
    return len(text.split())


def test_the_workload_is_the_mean_over_the_answers(encoder):
    work = workload(collection(), ANSWERED, encoder, words)
    assert (work.prompt_tokens, work.answer_tokens, work.seconds) == (200, 20, 1.5)
    assert work.reference_tokens == pytest.approx((4 + 1 + 5) / 3)
    assert work.retriever_parameters == parameter_count(encoder)


def test_a_pair_to_train_on_is_a_question_its_passage_and_the_hard_negatives(encoder):
    passage = token_counts(encoder, passage_texts(collection()).to_pylist()).mean()
    question = token_counts(encoder, [query.text for query in QUERIES]).mean()
    found = workload(collection(), ANSWERED, encoder, words).passage_tokens
    assert found == pytest.approx(question + (1 + NEGATIVES) * passage)


def test_a_label_is_a_train_question_with_a_reference_and_gold_passages(encoder):
    assert workload(collection(), ANSWERED, encoder, words).labels == 2
    assert workload(collection({"dev": GOLD}), ANSWERED, encoder, words).labels == 0
    assert workload(collection({"dev": GOLD}), ANSWERED, encoder, words, train="dev").labels == 2


def test_a_passage_judged_irrelevant_makes_no_label(encoder):
    assert workload(collection({"train": {"q1": {"p1": 0}, "q2": {"p2": 1}}}), ANSWERED, encoder, words).labels == 1


def test_a_failed_answer_is_not_a_short_one(encoder):
    failed = trial(*ANSWERED.answers["retrieved"].values(), answer("q3", 0, 0, 30.0, "error"))
    assert workload(collection(), failed, encoder, words) == workload(collection(), ANSWERED, encoder, words)


def test_what_was_never_answered_is_not_trained_in_no_time(encoder):
    work = workload(collection(), trial(), encoder, words)
    table = training_table(work, SPEED, ASSUMED)
    here = table[(table["component"] == "generator") & (table["device"] == THIS_MACHINE)]
    assert here["hours"].isna().all(), "without answers nobody knows how long a prompt is"


# The bill


def test_a_choice_costs_the_cheapest_way_to_train_each_of_its_parts_and_the_labels():
    rows = [("retriever", 5.0), ("retriever", 3.0), ("generator", 8.0), ("generator", np.nan), ("generator", 7.0)]
    table = pd.DataFrame(rows, columns=["component", "cost"])
    assert tuning_cost(table, "retriever", 100.0) == 103
    assert tuning_cost(table, "generator", 100.0) == 107
    assert tuning_cost(table, "end_to_end", 100.0) == 110


def test_the_cost_of_a_part_that_nobody_can_tell_is_not_nothing():
    table = pd.DataFrame([("retriever", 5.0)], columns=["component", "cost"])
    assert math.isnan(tuning_cost(table, "generator", 100.0)) and math.isnan(tuning_cost(table, "end_to_end", 100.0))


def local(tiny_encoder, tiny_generator):
    generator = Generator(model=str(tiny_generator), device="cpu", dtype="float32")
    return generator, Retriever(model=str(tiny_encoder), device="cpu", dtype="float32")


def test_a_local_generator_is_measured_for_the_bill(tiny_encoder, tiny_generator, encoder):
    generator, retriever = local(tiny_encoder, tiny_generator)
    bill = reckon(collection(), ANSWERED, generator, retriever, ASSUMED)
    jobs = bill.training[bill.training["device"] == THIS_MACHINE]
    assert jobs["hours"].gt(0).all() and set(jobs["component"]) == {"retriever", "generator"}
    assert (bill.labels, bill.label_hours) == (498, pytest.approx(498 * 5 / 60))
    assert bill.label_cost == pytest.approx(bill.label_hours * 40)
    assert bill.once == pytest.approx(tuning_cost(bill.training, "end_to_end", bill.label_cost))
    assert bill.queries["seconds"].iloc[0] == 1.5


def test_every_assumption_and_measurement_is_told(tiny_encoder, tiny_generator):
    bill = reckon(collection(), ANSWERED, *local(tiny_encoder, tiny_generator), ASSUMED)
    told = bill.assumptions["assumption"].tolist()
    for name in (*vars(WORK), *(name for name in vars(ASSUMED) if name != "devices")):
        assert any(entry.endswith(": " + name.replace("_", " ")) for entry in told), name
    assert sum("tokens a second" in entry for entry in told) == 3
    assert dict(bill.assumptions.to_numpy().tolist())["assumed: utilisation"] == 0.25


def test_a_served_generator_is_neither_asked_nor_measured(tiny_encoder, own_cache):
    retriever = Retriever(model=str(tiny_encoder), device="cpu", dtype="float32")
    served = Generator(backend="endpoint", model="served", endpoint="http://127.0.0.1:1/v1")
    bill = reckon(collection(), ANSWERED, served, retriever, ASSUMED)
    assert set(bill.training["component"]) == {"retriever"} and not (own_cache / "machine").exists()
    known = dict(bill.assumptions.to_numpy().tolist())
    counts = [endpoint.count_tokens(query.answer) for query in QUERIES if query.answer]
    assert known["measured: reference tokens"] == pytest.approx(np.mean(counts))
