import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from ragbench.evaluation.ragas_offline import answer_similarities, context_scores
from ragbench.retrieval.encoder import open_encoder


def groups(*texts):
    return tuple(frozenset(text) for text in texts)


@pytest.mark.parametrize(
    ("shown", "needed", "precision", "recall"),
    [
        ("a", groups("a"), 1, 1),
        ("abc", groups("a"), 1 / 3, 1),
        ("xyz", groups("a"), 0, 0),
        ("abx", groups("a", "b", "c", "d"), 2 / 3, 2 / 4),
        ("bx", groups("ab"), 1 / 2, 1),  # one of two alternatives suffices
        ("abx", groups("ab", "c"), 2 / 3, 1 / 2),  # both alternatives are no better than one
        ("b", groups("ab", "ac"), 1, 1 / 2),
        ("", groups("a"), 0, 0),
        ("b", groups("a", "ab", "c"), 1, 1 / 3),
    ],
)
def test_context_precision_and_recall_by_hand(shown, needed, precision, recall):
    assert context_scores(list(shown), needed) == pytest.approx((precision, recall))


def test_a_question_that_needs_nothing_has_no_scores():
    assert context_scores(["a"], ()) == (None, None)


GROUPS = st.lists(st.frozensets(st.sampled_from("abcdef"), min_size=1, max_size=3), min_size=1, max_size=4, unique=True)


@settings(max_examples=80, deadline=None)
@given(shown=st.lists(st.sampled_from("abcdefxyz"), unique=True, max_size=6), needed=GROUPS)
def test_recall_is_the_share_of_groups_and_precision_that_of_passages(shown, needed):
    precision, recall = context_scores(shown, needed)
    gold = frozenset().union(*needed)
    assert recall == pytest.approx(sum(bool(group & set(shown)) for group in needed) / len(needed))
    assert precision == pytest.approx(sum(name in gold for name in shown) / len(shown) if shown else 0)


def test_similarity_is_the_cosine_without_citations(tiny_encoder):
    answers = ["bab deg gug [p1]", "sat  sat", "bab deg", "gug"]
    references = ["gug deg bab kok [p2] [p3]", "lok mip nur", "bab deg. [p1]", "gug"]
    values = answer_similarities(open_encoder(str(tiny_encoder), device="cpu", dtype="float32"), answers, references)
    model = SentenceTransformer(str(tiny_encoder), device="cpu")
    ours = model.encode(["bab deg gug", "sat sat", "bab deg", "gug"], normalize_embeddings=True)
    theirs = model.encode(["gug deg bab kok", "lok mip nur", "bab deg.", "gug"], normalize_embeddings=True)
    np.testing.assert_allclose(values, (ours * theirs).sum(axis=1), atol=1e-5)
    assert values[3] == pytest.approx(1) and values[1] < 0.999


def test_empty_answers_and_references_have_no_similarity_and_keep_their_places(tiny_encoder):
    encoder = open_encoder(str(tiny_encoder), device="cpu", dtype="float32")
    values = answer_similarities(encoder, ["", "bab", "bab", " [p1] "], ["bab", "", "bab", "bab"])
    assert values == [None, None, pytest.approx(1), None]
    assert answer_similarities(encoder, [], []) == []
    assert answer_similarities(encoder, ["", "[p1]"], ["", ""]) == [None, None]


def test_ragas_is_told_not_to_track_before_it_is_imported():
    script = (
        "import os; os.environ.pop('RAGAS_DO_NOT_TRACK', None)\n"
        "import ragbench.evaluation.ragas_offline\n"
        "from ragas._analytics import do_not_track\n"
        "assert do_not_track()"
    )
    done = subprocess.run([sys.executable, "-c", script], env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
