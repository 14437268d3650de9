import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragbench.evaluation.sentences import sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Use os.path.join, e.g. Like this. Then stop.", ["Use os.path.join, e.g. Like this.", "Then stop."]),
        ("J. Smith wrote it. Dr. Who read it.", ["J. Smith wrote it.", "Dr. Who read it."]),
        ("Steps:\n1. Copy it.\n2. Run it.", ["Steps:", "1. Copy it.", "2. Run it."]),
        ("It costs 3.5 euros. 7 of them.", ["It costs 3.5 euros.", "7 of them."]),
        ('He said "Go." She went.', ['He said "Go."', "She went."]),
        ("", []),
        (" \n ", []),
    ],
)
def test_text_is_cut_at_the_ends_of_sentences_and_lines(text, expected):
    assert sentences(text) == expected


@given(st.text(alphabet="aB1 .!?\n-*\"'()", max_size=60))
def test_the_sentences_joined_are_the_text_but_for_white_space(text):
    assert " ".join(sentences(text)).split() == text.split()
