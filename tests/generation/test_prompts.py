from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragbench.collection.schema import Passage
from ragbench.generation.local import token_counter
from ragbench.generation.prompts import CLOSED_BOOK, INSTRUCTION, REFUSAL, Prompt, build_prompt

QUESTION = "What do cats do?"
CATS = Passage("p1", "Cats", "Cats sleep all day.", "d1")
DOGS = Passage("p2", "Dogs", "Dogs bark at night.", "d2")
texts = st.lists(st.sampled_from(["a", "bb", "ccc.", "1.", "[x]", "…"]), max_size=30).map(" ".join)
passage_lists = st.lists(st.tuples(texts, texts), max_size=6).map(
    lambda pairs: [Passage(f"id-{i}", title, text, "d") for i, (title, text) in enumerate(pairs)]
)


def words(text: str) -> int:
    return len(text.split())


def build(passages: list[Passage], budget: int) -> Prompt:
    return build_prompt("q", QUESTION, passages, count_tokens=words, max_context_tokens=budget)


def context(prompt: Prompt) -> str:
    assert prompt.messages[1]["content"].endswith(QUESTION)
    return prompt.messages[1]["content"].removesuffix(QUESTION).rstrip("\n")


def long_passage(name: str, length: int) -> Passage:
    return Passage(name, "Title", " ".join(f"w{i}" for i in range(1, length)), "d")


def needed(passages: list[Passage]) -> int:
    return sum(2 + words(passage.full_text) for passage in passages)  # two words of head: "1." and "[id]"


def test_passages_are_numbered_in_the_given_order_with_id_title_and_text():
    user = build([DOGS, CATS], 100).messages[1]["content"]
    assert user == "1. [p2] Dogs Dogs bark at night.\n\n2. [p1] Cats Cats sleep all day.\n\nWhat do cats do?"


def test_the_instruction_is_the_system_message_and_tells_how_to_refuse():
    assert build([CATS], 100).messages[0] == {"role": "system", "content": INSTRUCTION}
    assert REFUSAL in INSTRUCTION
    own = build_prompt("q", QUESTION, [CATS], count_tokens=words, max_context_tokens=9, instruction="Be brief.")
    assert own.messages[0]["content"] == "Be brief."
    assert [message["role"] for message in own.messages] == ["system", "user"]


def test_the_instruction_may_stand_last_after_the_question_in_a_single_message():
    last = build_prompt(
        "q", QUESTION, [CATS], count_tokens=words, max_context_tokens=9, instruction="Be brief.",
        order="instruction_last",
    )  # fmt: skip
    content = "1. [p1] Cats Cats sleep all day.\n\nWhat do cats do?\n\nBe brief."
    assert last.messages == ({"role": "user", "content": content},)
    bare = build_prompt("q", QUESTION, [], count_tokens=words, max_context_tokens=9, order="instruction_last")
    assert bare.messages[0]["content"] == f"{QUESTION}\n\n{INSTRUCTION}"


def test_the_closed_book_speaks_of_no_passages_and_of_no_refusal():
    assert "passage" not in CLOSED_BOOK.lower() and REFUSAL not in CLOSED_BOOK
    assert "one or two short sentences" in CLOSED_BOOK and "one or two short sentences" in INSTRUCTION


def test_what_is_shown_whole_is_not_recorded_as_cut():
    prompt = build([DOGS, CATS], 100)
    assert (prompt.query_id, prompt.context_ids, prompt.cut_ids) == ("q", ("p2", "p1"), ())


def test_only_the_last_passage_is_cut_and_the_cut_is_recorded():
    prompt = build([CATS, long_passage("long", 50)], 7 + 20)
    kept = "Title " + " ".join(f"w{i}" for i in range(1, 17))  # 20 = "2.", "[long]", 17 words, "…"
    assert context(prompt) == f"1. [p1] Cats Cats sleep all day.\n\n2. [long] {kept} …"
    assert (prompt.context_ids, prompt.cut_ids) == (("p1", "long"), ("long",))


def test_passages_after_the_cut_one_are_left_out_even_if_they_would_fit():
    prompt = build([DOGS, long_passage("long", 50), CATS], 7 + 20)
    assert (prompt.context_ids, prompt.cut_ids) == (("p2", "long"), ("long", "p1"))
    assert CATS.text not in context(prompt)


def test_a_passage_of_which_next_to_nothing_would_remain_is_left_out():
    # What would be kept counts in characters, here three or four a word.
    assert build([long_passage("long", 50), CATS], 14).context_ids == ()
    kept = build([long_passage("long", 50), CATS], 16)
    assert (kept.context_ids, kept.cut_ids) == (("long",), ("long", "p1"))
    assert words(context(kept)) == 16


def test_a_text_without_spaces_is_cut_too():
    cats = Passage("neko", "", "猫" * 3000, "d")
    prompt = build_prompt("q", QUESTION, [cats, CATS], count_tokens=len, max_context_tokens=500)
    assert (prompt.context_ids, prompt.cut_ids) == (("neko",), ("neko", "p1"))
    assert 400 < context(prompt).count("猫") < 500


def test_without_passages_the_user_message_is_the_question():
    prompt = build([], 100)
    assert prompt.messages[1] == {"role": "user", "content": QUESTION}
    assert (prompt.context_ids, prompt.cut_ids) == ((), ())


def test_a_budget_of_zero_shows_nothing_and_records_everything_as_cut():
    prompt = build([CATS, DOGS], 0)
    assert prompt.messages[1]["content"] == QUESTION
    assert (prompt.context_ids, prompt.cut_ids) == ((), ("p1", "p2"))


def test_one_huge_passage_fills_the_budget_to_the_last_word():
    prompt = build([long_passage("huge", 200_000)], 768)
    assert words(context(prompt)) == 768
    assert (prompt.context_ids, prompt.cut_ids) == (("huge",), ("huge",))


def test_an_exact_fit_is_whole_and_one_token_less_is_not():
    pair = [CATS, long_passage("long", 20)]
    assert build(pair, needed(pair)).cut_ids == ()
    assert build(pair, needed(pair) - 1).cut_ids == ("long",)


@given(passage_lists, st.integers(0, 120))
@settings(max_examples=150)
def test_the_context_is_never_over_the_budget(passages: list[Passage], budget: int):
    assert words(context(build(passages, budget))) <= budget


@given(passage_lists, st.integers(0, 120))
@settings(max_examples=150)
def test_whole_passages_come_first_then_at_most_one_cut_then_those_left_out(passages: list[Passage], budget: int):
    prompt = build(passages, budget)
    ids = [passage.id for passage in passages]
    whole = [name for name in ids if name not in prompt.cut_ids]
    assert list(prompt.context_ids) == ids[: len(prompt.context_ids)]
    assert list(prompt.cut_ids) == ids[len(whole) :]
    assert len(prompt.context_ids) - len(whole) in (0, 1)
    blocks = context(prompt).split("\n\n") if prompt.context_ids else []
    expected = [f"{n}. [{p.id}] {p.full_text}" for n, p in enumerate(passages[: len(whole)], start=1)]
    assert blocks[: len(whole)] == expected
    for block in blocks[len(whole) :]:
        shown = block.removeprefix(f"{len(whole) + 1}. [{ids[len(whole)]}] ").removesuffix(" …")
        assert passages[len(whole)].full_text.startswith(shown)


@given(passage_lists, st.integers(0, 120))
@settings(max_examples=50)
def test_the_order_of_the_prompt_changes_nothing_of_what_is_shown(passages: list[Passage], budget: int):
    first = build(passages, budget)
    last = build_prompt(
        "q", QUESTION, passages, count_tokens=words, max_context_tokens=budget, order="instruction_last"
    )
    assert (last.context_ids, last.cut_ids) == (first.context_ids, first.cut_ids)
    assert last.messages[0]["content"] == f"{first.messages[1]['content']}\n\n{INSTRUCTION}"


@given(passage_lists)
@settings(max_examples=100)
def test_all_passages_are_shown_whole_when_the_budget_allows(passages: list[Passage]):
    prompt = build(passages, needed(passages))
    assert (len(prompt.context_ids), prompt.cut_ids) == (len(passages), ())


@pytest.mark.parametrize("budget", [0, 60, 100, 333])
def test_the_budget_holds_in_tokens_of_the_model(tiny_generator: Path, budget: int):
    count = token_counter(str(tiny_generator))
    passages = [Passage(f"p.{i}", "bab", "dek unusual-word bip gop " * 12, "d") for i in range(3)]
    prompt = build_prompt("q", QUESTION, passages, count_tokens=count, max_context_tokens=budget)
    assert budget * 0.8 <= count(context(prompt)) <= budget
