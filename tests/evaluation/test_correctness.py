from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragbench.evaluation.answer_metrics import token_f1
from ragbench.evaluation.correctness import Compared, correctness, features
from ragbench.retrieval.encoder import Encoder, open_encoder

QUESTION = "How do I copy a whole folder?"
GOLD = ("shutil.copytree Recursively copy an entire directory tree rooted at src to a directory named dst.",)
REFERENCE = "Call shutil.copytree(src, dst), which copies the entire tree. [shutil.copytree]"


@pytest.fixture
def encoder(tiny_encoder: Path) -> Encoder:
    return open_encoder(str(tiny_encoder), device="cpu", dtype="float32")


@pytest.fixture
def real_encoder(real_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    monkeypatch.setenv("RAGBENCH_CACHE", str(real_cache))
    return open_encoder("all-MiniLM-L6-v2", device="cpu", dtype="float32")


def scores(encoder: Encoder, *answers: str, reference: str = REFERENCE, gold: tuple[str, ...] = GOLD) -> list[float]:
    return correctness([Compared(QUESTION, answer, reference, gold) for answer in answers], encoder)


def test_the_reference_itself_is_right(encoder):
    same, without_source, other_source = scores(
        encoder, REFERENCE, REFERENCE.removesuffix(" [shutil.copytree]"), REFERENCE.replace("[shutil.", "[os.")
    )
    assert same == without_source == other_source > 0.95


@pytest.mark.parametrize("answer", ["", "  \n", "[shutil.copytree]", "[none] [a.b]"])
def test_an_answer_that_says_nothing_is_wrong(encoder, answer):
    assert scores(encoder, answer) == [0.0]


def test_the_real_encoder_parts_right_answers_from_wrong_ones(real_encoder):
    right = ["Use shutil.copytree(src, dst) to copy the entire tree.", "shutil.copytree copies a whole directory tree."]
    wrong = [
        "Use os.rename(old, new) to move it.",
        "Bananas are rich in potassium.",
        "Open a socket and listen on port 8080.",
        "...",
    ]
    assert min(scores(real_encoder, *right)) > 0.5 > max(scores(real_encoder, *wrong))


def test_made_up_names_and_numbers_cost(real_encoder):
    plain, invented = scores(
        real_encoder,
        "Call shutil.copytree(src, dst) to copy the entire tree.",
        "Call shutil.copytree(src, dst, mode=4711) of Zebrafolder to copy the entire tree.",
    )
    assert plain > invented


def test_a_sentence_of_the_gold_passages_that_is_no_answer_is_worth_less_than_the_answer(real_encoder):
    answer, quoted = scores(real_encoder, "shutil.copytree copies the entire tree.", "a directory named dst")
    assert answer > 0.5 > quoted


def test_overlap_is_with_the_reference_and_novelty_is_what_comes_from_nowhere():
    item = Compared("Which cats sleep?", "Red cats sleep on 7 sofas. [p9]", "All cats sleep.", ("Cats on sofas.",))
    overlap, novelty = features(item)
    assert overlap == pytest.approx(2 * 2 / (6 + 3))  # cats, sleep; of six and of three words
    assert novelty == pytest.approx(2 / 6)  # red, 7


def test_a_word_counts_once_for_novelty_however_often_it_is_said():
    once, often = (features(Compared("", f"cats {'dogs ' * n}", "cats", ()))[1] for n in (1, 5))
    assert once == often == 0.5


WORDS = st.lists(st.sampled_from(["cats", "dogs", "sleep", "bark", "7", "zorn", "blim"]), max_size=6).map(" ".join)


@settings(max_examples=100, deadline=None)
@given(question=WORDS, answer=WORDS, reference=WORDS, gold=WORDS, more=WORDS)
def test_more_gold_passages_never_make_an_answer_newer(question, answer, reference, gold, more):
    few = features(Compared(question, answer, reference, (gold,)))
    many = features(Compared(question, answer, reference, (gold, more)))
    assert 0 <= many[1] <= few[1] <= 1 and few[0] == many[0]


@settings(max_examples=100, deadline=None)
@given(question=WORDS, answer=WORDS, reference=WORDS)
def test_nothing_is_new_in_an_answer_made_of_the_reference(question, answer, reference):
    assert features(Compared(question, reference, reference, ()))[1] == 0
    overlap, novelty = features(Compared(question, answer, f"{reference} {answer}", ()))
    assert novelty == 0 and overlap == token_f1(answer, f"{reference} {answer}")


@pytest.mark.parametrize(("answer", "reference"), [("%", "/"), ("->", "**"), ("...", "+"), ("[]", "{}")])
def test_answers_of_symbols_are_not_the_same_because_neither_has_words(real_encoder, answer, reference):
    """ "Which operator joins two paths?" """
    [wrong] = scores(real_encoder, answer, reference=reference, gold=())
    assert wrong < 0.5


def test_an_answer_of_a_symbol_that_is_the_reference_is_right(encoder):
    assert scores(encoder, "/", reference="/", gold=())[0] > 0.5


def test_estimates_are_probabilities_and_keep_their_places(encoder):
    answers = ["", "Cats sleep.", REFERENCE, "[none]", "bab dek", "7 7 7", "猫は寝る。", "x" * 5000]
    together = scores(encoder, *answers)
    assert all(0 <= value <= 1 for value in together)
    assert together == pytest.approx([scores(encoder, answer)[0] for answer in answers], abs=1e-5)
    assert scores(encoder, *answers[::-1]) == pytest.approx(together[::-1], abs=1e-5)


def test_neither_gold_passages_nor_a_question_are_needed(encoder):
    [value] = correctness([Compared("", REFERENCE, REFERENCE, ())], encoder)
    assert value > 0.95


def test_no_answers_give_no_estimates(encoder):
    assert correctness([], encoder) == []
