import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragbench.evaluation.grounding_features import names, numbers, passages, stem, wording

SOURCE = [
    "In 1990, Guido van Rossum published 14 modules for Monty at the CWI in Amsterdam.",
    "The work was not finished until 1994.",
]
TEXTS = st.lists(
    st.sampled_from(["The", "cat", "does", "not", "sleep", "in", "Berlin", "1,200", "three", "times", "os.path"]),
    min_size=1,
    max_size=12,
).map(" ".join)


def features(sentence, source=SOURCE):
    return wording(sentence, passages(source))


def test_a_copied_sentence_is_covered_whole_and_has_nothing_foreign():
    for sentence in SOURCE:
        expected = {"coverage": 1, "pairs": 1, "foreign_names": 0, "foreign_numbers": 0, "negation": 0}
        assert features(sentence) == expected


@pytest.mark.parametrize(
    ("sentence", "feature"),
    [
        ("In 1990, Guido van Rossum published 15 modules.", "foreign_numbers"),
        ("In 1990, Guido van Rossum published eleven modules.", "foreign_numbers"),
        ("In 1990, Guido van Linden published 14 modules.", "foreign_names"),
        ("Call it with shutil.move to publish 14 modules.", "foreign_names"),
        ("The work was finished until 1994.", "negation"),
    ],
)
def test_one_foreign_number_name_or_negation_shows_in_its_feature_only(sentence, feature):
    found = features(sentence)
    foreign = {name for name in ("foreign_names", "foreign_numbers", "negation") if found[name] > 0}
    assert foreign == {feature}


def test_without_passages_nothing_is_covered():
    found = features("Guido published 14 modules.", [])
    assert (found["coverage"], found["pairs"], found["foreign_numbers"], found["negation"]) == (0, 0, 1, 0)


def test_inflected_words_and_spelled_numbers_agree():
    assert stem("copies") == stem("copied") == stem("copying") == stem("copy")
    assert stem("directories") == stem("directory")
    assert numbers("1,200 files in three folders") == ["1200", "3"]


def test_the_first_word_of_a_sentence_is_no_name():
    assert names("Copying works. The Python docs say so.") == [stem("python")]


@given(TEXTS, st.lists(TEXTS, max_size=4))
def test_every_feature_is_a_share(sentence, source):
    assert all(0 <= value <= 1 for value in features(sentence, source).values())


@given(TEXTS, st.lists(TEXTS, max_size=4), TEXTS)
def test_another_passage_never_lowers_what_is_covered(sentence, source, more):
    before, after = features(sentence, source), features(sentence, [*source, more])
    assert after["coverage"] >= before["coverage"]
    assert after["pairs"] >= before["pairs"]
    assert after["foreign_names"] <= before["foreign_names"]
    assert after["foreign_numbers"] <= before["foreign_numbers"]
