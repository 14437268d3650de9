import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.diagnosis.vocabulary import LEVELS, gap_table, level, special_share, vocabulary_gap
from ragbench.retrieval.encoder import open_encoder

# The tiny encoder knows "bab", "bed" and "dog", and spells "zebra" and "quux" letter by letter.
texts = st.text(st.sampled_from("abdegoqz 1_-É\n"), max_size=40)


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return open_encoder(str(tiny_encoder), device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("bab bed dog", 0.0),
        ("zebra quux", 1.0),
        ("bab zebra", 0.5),
        ("zebra, zebra! (zebra) bab", 0.5),  # distinct words
        ("ZEBRA Bab", 0.5),
        ("bab zz 12345 x_y", 0.0),  # two letters or digits are no words
        ("bed_zebra", 0.5),
        ("bab2zebra", 0.5),
    ],
)
def test_words_that_the_tokenizer_spells_in_pieces_are_special(encoder, text, share):
    assert special_share([text], encoder) == pytest.approx([share])


@pytest.mark.parametrize("text", ["", "   ", "12 34", "?!"])
def test_a_text_without_words_has_nothing_special(encoder, text):
    assert special_share(["zebra", text], encoder).tolist() == [1.0, 0.0]
    assert special_share([text], encoder).tolist() == [0.0]


def test_no_texts_have_no_shares(encoder):
    assert len(special_share([], encoder)) == 0


def test_a_word_that_the_tokenizer_cannot_even_spell_is_special(encoder):
    assert special_share(["żółć bab"], encoder) == pytest.approx([0.5])


@settings(max_examples=40, deadline=None)
@given(st.lists(texts, min_size=1, max_size=5))
def test_a_share_lies_between_0_and_1_and_is_that_of_the_text_alone(encoder, many):
    together = special_share(many, encoder)
    assert ((together >= 0) & (together <= 1)).all()
    np.testing.assert_allclose(together, [special_share([text], encoder)[0] for text in many])
    np.testing.assert_allclose(together, special_share([f"{text} {text}" for text in many], encoder))


def test_each_level_begins_at_its_bound():
    assert [level(bound) for bound in LEVELS.values()] == list(LEVELS)
    assert (level(LEVELS["high"] - 1e-9), level(LEVELS["medium"] - 1e-9), level(1.0)) == ("medium", "low", "high")


@given(st.floats(0, 1), st.floats(0, 1))
def test_more_special_words_never_mean_a_lower_level(one, other):
    names = list(LEVELS)
    assert names.index(level(min(one, other))) <= names.index(level(max(one, other)))


@pytest.mark.parametrize(
    ("question", "passages", "gap"),
    [
        ("Which cats bark loudly?", ["Cats bark loudly."], 0.0),
        ("Which cats bark loudly?", ["Dogs swim."], 1.0),
        ("Which cats bark loudly?", ["Cats swim.", "Dogs BARK."], 1 / 3),  # any of the passages will do
        ("cats cats cats dogs", ["cats"], 0.5),
        ("café", ["CAFÉ"], 0.0),
        ("os.path.join", ["path join"], 1 / 3),
        ("cats", [], 1.0),
        ("cats", [""], 1.0),
    ],
)
def test_the_gap_is_the_share_of_the_questions_words_that_no_passage_has(question, passages, gap):
    assert vocabulary_gap(question, passages) == pytest.approx(gap)


@pytest.mark.parametrize("question", ["", "?", "What is it about?"])
def test_a_question_of_function_words_only_leaves_no_gap(question):
    assert vocabulary_gap(question, ["Cats sleep."]) == 0.0


@pytest.mark.parametrize("word", ["system", "call", "name", "empty", "fire"])
def test_only_function_words_are_left_aside(word):
    assert vocabulary_gap(f"Which {word} is it?", ["Cats sleep."]) == 1.0


@given(texts, st.lists(texts, max_size=3), texts)
def test_another_passage_never_widens_the_gap(question, passages, other):
    before = vocabulary_gap(question, passages)
    assert 0 <= vocabulary_gap(question, [*passages, other]) <= before <= 1
    assert vocabulary_gap(question, [*passages, question]) == 0


# Scores by vocabulary gap

PASSAGE = "bab bed dog gun"
ASKED = {0.0: "bab bed dog gun", 0.5: "bab bed mop tin", 1.0: "lid mop tin rug"}
"""Gap to `PASSAGE` → a question with it."""


def asked_with(gaps, split="dev"):
    """Return a collection of which the n-th question leaves the n-th gap to its passage, and the questions."""
    queries = {f"{split}{n}": Query(f"{split}{n}", ASKED[gap]) for n, gap in enumerate(gaps)}
    corpus = corpus_from_rows([("gold", "", PASSAGE, "d"), ("other", "", ASKED[1.0], "d")])
    # What is judged as no answer closes no gap.
    qrels = {split: {name: {"gold": 1, "other": 0} for name in queries}}
    return Collection("c", corpus, queries, qrels), {split: list(queries.values())}


def scored(before, after, split="dev"):
    names = [f"{split}{n}" for n in range(len(before))]
    return pd.DataFrame({"split": split, "query_id": names, "before": before, "after": after})


def test_a_gain_where_the_words_differ_most_shows_in_that_third():
    gaps = [1.0, 0.0, 0.5] * 4
    table = gap_table(*asked_with(gaps), scored([0.2] * 12, [0.8 if gap == 1 else 0.2 for gap in gaps]))
    assert table["words not in the passage"].tolist() == ["0% to 0%", "50% to 50%", "100% to 100%"]
    assert table["before"].tolist() == pytest.approx([0.2] * 3)
    assert table["after"].tolist() == pytest.approx([0.2, 0.2, 0.8])
    assert table["questions"].tolist() == [4, 4, 4]


@given(st.lists(st.tuples(st.sampled_from(list(ASKED)), st.floats(0, 1)), min_size=1, max_size=12))
def test_every_question_is_in_one_of_three_thirds_in_the_order_of_their_gaps(drawn):
    gaps, after = zip(*drawn, strict=True)
    table = gap_table(*asked_with(gaps), scored([0.0] * len(gaps), after))
    sizes = table["questions"]
    assert len(table) == min(3, len(gaps)) and sizes.sum() == len(gaps) and sizes.max() - sizes.min() <= 1
    assert (table["after"] * sizes).sum() == pytest.approx(sum(after))
    bounds = [float(bound.strip("%")) for span in table["words not in the passage"] for bound in span.split(" to ")]
    assert bounds == sorted(bounds)


def test_each_split_has_its_own_thirds_and_questions_that_were_not_scored_twice_or_have_no_gold_are_left_out():
    dev, ood = asked_with([0.0, 0.5, 1.0, 1.0]), asked_with([1.0, 0.0], "ood")
    dev[0].qrels["dev"]["dev2"] = {"other": 0}
    both = Collection("c", dev[0].corpus, dev[0].queries | ood[0].queries, dev[0].qrels | ood[0].qrels)
    pairs = pd.concat([scored([0.1] * 4, [0.2, None, 0.3, 0.4]), scored([0.5, 0.6], [0.7, 0.8], "ood")])
    table = gap_table(both, dev[1] | ood[1], pairs)
    assert table["split"].tolist() == ["dev", "dev", "ood", "ood"]
    assert table["after"].tolist() == [0.2, 0.4, 0.8, 0.7]
    assert table["questions"].tolist() == [1] * 4
