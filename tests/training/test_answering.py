from pathlib import Path

import pytest
import torch
from generator_examples import dataset, example, refused
from transformers import AutoModelForCausalLM, AutoTokenizer

from ragbench.generation.local import complete
from ragbench.generation.prompts import REFUSAL
from ragbench.training.answering import CRITERION, Exam, answers, measure, scores


@pytest.fixture
def network(tiny_generator: Path):
    return AutoModelForCausalLM.from_pretrained(tiny_generator, dtype=torch.float32)


def test_the_answers_are_those_of_the_local_backend_in_the_order_of_the_examples(network, tiny_generator):
    rows = [example(number) for number in (2, 0, 7, 1, 5)]
    exam = Exam(dataset(rows), max_new_tokens=6, batch_rows=2)
    found = answers(network, AutoTokenizer.from_pretrained(tiny_generator), exam)
    settings = {"model": str(tiny_generator), "device": "cpu", "dtype": "float32", "max_new_tokens": 6}
    assert found == [each.text for each in complete([row["prompt"] for row in rows], **settings)]


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_the_model_as_it_was(network, tiny_generator, training):
    network.train(training)
    before = {name: weight.clone() for name, weight in network.named_parameters()}
    exam = Exam(dataset([example(0)]), max_new_tokens=3)
    assert measure(network, AutoTokenizer.from_pretrained(tiny_generator), exam)[CRITERION] <= 1
    assert network.training is training
    assert all(torch.equal(weight, before[name]) for name, weight in network.named_parameters())
    assert all(weight.requires_grad and not weight.is_inference() for weight in network.parameters())


def test_right_answers_and_right_refusals_score_full():
    exam = Exam(dataset([example(1), refused(2)]))
    found = scores(exam, ["mim nan dad [p1]", REFUSAL])
    assert found == {
        CRITERION: 1.0, "answer_f1": 1.0, "citation_precision": 1.0, "format": 1.0, "refusal": 1.0
    }  # fmt: skip


def test_an_answer_where_a_refusal_is_expected_counts_against_the_criterion_but_not_the_answers_f1():
    exam = Exam(dataset([example(1), refused(2)]))
    found = scores(exam, ["mim nan dad [p1]", "mim nan gag [p2]"])
    assert found[CRITERION] == pytest.approx(2 / 3) and found["answer_f1"] == 1.0 and found["refusal"] == 0.5


def test_a_refusal_where_an_answer_is_expected_counts_against_both():
    found = scores(Exam(dataset([example(1)])), [REFUSAL])
    assert found["answer_f1"] == found[CRITERION] == found["citation_precision"] == found["refusal"] == 0


def test_another_house_style_and_a_wrong_citation_are_told_apart():
    found = scores(Exam(dataset([example(1)]), answer_format=r"mim nan dad"), ["mim nan dad"])
    assert found["format"] == 1 and found["citation_precision"] == 0 and found["answer_f1"] == 1
    found = scores(Exam(dataset([example(1)])), ["mim nan dad [p2]"])
    assert found["format"] == 1 and found["citation_precision"] == 0


def test_a_metric_that_applies_to_none_is_left_out():
    assert "answer_f1" not in scores(Exam(dataset([refused(1)])), [REFUSAL])


def test_a_model_that_always_refuses_is_worth_less_than_one_that_answers_badly():
    exam = Exam(dataset([example(1), example(2), refused(3), refused(4)]))
    silent = scores(exam, [REFUSAL] * 4)
    bad = scores(exam, ["mim gag bog"] * 4)
    assert silent[CRITERION] < bad[CRITERION] < 1
