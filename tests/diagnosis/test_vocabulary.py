import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragbench.diagnosis.vocabulary import LEVELS, level, special_share, vocabulary_gap
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
