from dataclasses import replace

import pytest

from ragbench.training.joint_looks import Look, alarm, best_of

START = Look(0, 2.0, 0.8, 0.9, 0.2, -1.5, -2.0, 1.2, 0.9)
NOW = replace(START, step=8, loss=1.9)


def test_a_training_that_goes_well_raises_no_alarm():
    assert alarm(START, START) is alarm(START, NOW) is None
    assert alarm(START, replace(NOW, recall=0.76, distinct=0.5, cosine=0.5, loss=2.5)) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cosine": 0.95}, "nearly the same embedding (mean cosine 0.95)"),
        ({"distinct": 0.1}, "10% different passages are ranked first, 90% before"),
        ({"recall": 0.7}, "gold passages are found for 70% of dev's questions, 80% before"),
        ({"own": -2.0}, "passages no longer matter"),
    ],
)
def test_each_way_of_going_wrong_stops_it_with_its_reason(changes, said):
    assert said in alarm(START, replace(NOW, **changes))


def test_a_generator_that_never_cared_for_its_passage_is_no_fault_of_the_training():
    careless = replace(START, own=-2.0)
    assert alarm(careless, replace(careless, step=8)) is None


def test_embeddings_that_were_alike_from_the_start_are_no_collapse():
    alike = replace(START, cosine=0.92)
    assert alarm(alike, replace(alike, step=8)) is None


def test_the_best_look_has_the_lowest_loss_and_is_the_earliest_of_equal_ones():
    assert best_of([START, NOW, replace(NOW, step=16)]) is NOW
