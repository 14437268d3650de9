import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ragbench.training.guards import (
    dev_did_not_fall,
    gradients_flowed,
    not_collapsed,
    parameters_moved,
)

BEFORE = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}  # of norm 5


def test_weights_that_changed_have_moved_by_a_share_of_their_norm():
    guard = parameters_moved(BEFORE, {"a": torch.tensor([3.0, 0.3]), "b": torch.tensor([[4.4]])})
    assert guard.holds
    assert guard.measured == "by 1.00e-01 of their norm"


def test_weights_that_no_gradient_reached_have_not_moved():
    guard = parameters_moved(BEFORE, {name: weight.clone() for name, weight in BEFORE.items()})
    assert not guard.holds
    assert guard.measured == "by 0.00e+00 of their norm; 2 of 2 tensors did not move"


def test_a_tensor_that_stood_still_is_counted_and_what_was_frozen_is_not():
    guard = parameters_moved(BEFORE, {**BEFORE, "b": torch.tensor([[4.5]]), "frozen": torch.ones(3)})
    assert guard.holds
    assert guard.measured == "by 1.00e-01 of their norm; 1 of 2 tensors did not move"


@pytest.mark.parametrize("before", [{}, {"a": torch.zeros(2)}])
def test_no_weights_or_weights_of_0_that_stay_have_not_moved(before):
    assert not parameters_moved(before, before).holds


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_not_taken_for_moved(bad):
    after = {"a": torch.tensor([bad, 0.0]), "b": BEFORE["b"]}
    guard = parameters_moved(BEFORE, after)
    assert not guard.holds
    assert str(bad) in guard.measured


@pytest.mark.parametrize(
    ("norms", "holds", "measured"),
    [
        ([0.5, 0.25, 4.0], True, "median norm 0.5 over 3 steps, 0 zero"),
        ([0.5, 0.0, 4.0], False, "median norm 0.5 over 3 steps, 1 zero"),
        ([], False, "no step was taken, 0 zero"),
    ],
)
def test_no_gradient_is_0(norms, holds, measured):
    guard = gradients_flowed(norms, [1.0] * len(norms))
    assert (guard.holds, guard.measured) == (holds, measured)


def test_where_there_was_nothing_to_learn_no_gradient_is_missed():
    assert gradients_flowed([0.5, 0.0], [1.0, 0.0]).holds
    assert not gradients_flowed([0.5, 0.0], [1.0, 1e-9]).holds


def at_cosine(cosine, n=40, dimensions=41):
    """Return n unit-length vectors, any two of which have this cosine."""
    vectors = math.sqrt(1 - cosine) * np.eye(n, dimensions)
    vectors[:, -1] = math.sqrt(cosine)
    return vectors


@pytest.mark.parametrize(("cosine", "holds"), [(0.0, True), (0.4, True), (0.88, True), (0.92, False), (1.0, False)])
def test_embeddings_that_point_all_one_way_have_collapsed(cosine, holds):
    guard = not_collapsed(at_cosine(cosine), ["a", "b"], ["a", "b"])
    assert guard.holds == holds
    assert f"mean cosine of different passages {cosine:.2f};" in guard.measured


@given(st.integers(2, 12), st.integers(0, 1000))
def test_the_cosine_is_the_mean_over_pairs_of_different_passages(n, seed):
    vectors = np.random.default_rng(seed).normal(size=(n, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    mean = float((vectors @ vectors.T)[~np.eye(n, dtype=bool)].mean())
    found = float(not_collapsed(vectors, ["a"], ["a"]).measured.split(";")[0].split()[-1])
    assert found == pytest.approx(mean, abs=0.0051)


@pytest.mark.parametrize(("after", "holds"), [("abcd", True), ("abab", True), ("aaaa", False)])
def test_questions_that_all_find_the_same_passage_have_collapsed(after, holds):
    guard = not_collapsed(at_cosine(0.1), list("abcd"), list(after))
    assert guard.holds == holds
    assert guard.measured.endswith(f"4 questions rank {len(set(after))} different passages first (4 before)")


def test_a_corpus_of_one_passage_has_not_collapsed():
    assert not_collapsed(np.eye(1), ["a"], ["a"]).holds


@pytest.mark.parametrize(("before", "after", "holds"), [(0.5, 0.5, True), (0.5, 0.6, True), (0.5, 0.4999, False)])
def test_dev_may_stay_but_not_fall(before, after, holds):
    guard = dev_did_not_fall(before, after)
    assert (guard.holds, guard.measured) == (holds, f"nDCG@10 {before:.3f} before, {after:.3f} after")
