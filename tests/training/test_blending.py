import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ragbench.training.blending import blend

BASE, TUNED = 2.0, 6.0


def model(value, counted):
    """Return a model all of whose weights are `value`, with a batch norm that has counted some batches."""
    made = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        for weight in made.state_dict().values():
            weight.fill_(value if weight.is_floating_point() else counted)
    return made


def weight(made):
    """Return the value of all weights of a model."""
    [value] = {float(x) for name, w in made.state_dict().items() if "tracked" not in name for x in w.flatten()}
    return value


def blended(shares, measure, whole):
    tuned = model(TUNED, counted=9)
    found = blend(tuned, model(BASE, counted=4).state_dict(), shares, lambda mixed: measure(weight(mixed)), whole)
    return tuned, found


def near(target):
    return lambda value: -abs(value - target)


@pytest.mark.parametrize(("target", "share"), [(2.1, 0.0), (3.2, 0.25), (4.4, 0.5), (5.1, 0.75), (6.0, 1.0)])
def test_the_best_share_wins_and_its_weights_are_on_the_way_from_base_to_tuned(target, share):
    tuned, found = blended([0.0, 0.25, 0.5, 0.75], near(target), near(target)(TUNED))
    expected = BASE + share * (TUNED - BASE)
    assert found == (share, pytest.approx(near(target)(expected)))
    assert weight(tuned) == expected


@given(st.floats(0, 1, width=32))
def test_a_blend_is_the_interpolation(share):
    tuned, found = blended([share], lambda _: 1.0, 0.0)
    assert found[0] == share or found == (1.0, 0.0)
    assert weight(tuned) == pytest.approx(BASE + found[0] * (TUNED - BASE))


@pytest.mark.parametrize("shares", [[0.25, 0.75], [0.75, 0.25]])
def test_of_equals_the_share_nearer_to_the_base_wins(shares):
    tuned, found = blended(shares, lambda _: 0.5, 0.5)
    assert found == (0.25, 0.5)
    assert weight(tuned) == 3.0


def test_the_tuned_model_is_always_among_them_and_is_not_measured_again():
    tuned, found = blended([0.5, 1.0], {4.0: 0.1}.get, 0.7)
    assert found == (1.0, 0.7)
    assert weight(tuned) == TUNED


def test_without_shares_the_model_stays_as_it_is():
    tuned, found = blended([], None, 0.3)
    assert found == (1.0, 0.3)
    assert weight(tuned) == TUNED


def test_what_is_no_floating_point_number_is_left_alone():
    tuned, found = blended([0.5], lambda _: 1.0, 0.0)
    assert found[0] == 0.5
    assert int(tuned[1].num_batches_tracked) == 9
