from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_vocabulary import WORDS
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoTokenizer, BertConfig, BertModel

from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.errors import RagbenchError
from ragbench.retrieval.encoder import Encoder, encode, open_encoder
from ragbench.training.candidates import Mining
from ragbench.training.negatives import OUTCOMES, filled, mine
from ragbench.training.pairs import Pair, labelled_pairs

ASKED = WORDS[0]


@pytest.fixture(scope="module")
def compass(tiny_encoder: Path, tmp_path_factory) -> Encoder:
    """An encoder that turns the n-th of `WORDS` into the direction of n degrees, so that a test sets the scores."""
    folder = tmp_path_factory.mktemp("compass")
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    size = {"hidden_size": 4, "num_hidden_layers": 0, "num_attention_heads": 1, "intermediate_size": 4}
    model = BertModel(BertConfig(vocab_size=len(tokenizer), **size))
    angles = np.radians(np.arange(len(WORDS)))
    axes = np.stack([np.cos(angles), np.sin(angles), -np.cos(angles), -np.sin(angles)], axis=1)
    with torch.no_grad():
        for table in model.embeddings.children():
            if isinstance(table, torch.nn.Embedding):
                table.weight.zero_()
        model.embeddings.word_embeddings.weight[tokenizer.convert_tokens_to_ids(WORDS)] = torch.tensor(axes).float()
    tokenizer.save_pretrained(folder / "words")
    model.save_pretrained(folder / "words")
    modules = [Transformer(str(folder / "words")), Pooling(4)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "model"))
    return open_encoder(str(folder / "model"), device="cpu", dtype="float32")


def collection(texts: dict[str, str], **qrels: dict[str, dict[str, int]]) -> Collection:
    """Return passages, and queries that all ask `ASKED`."""
    queries = {name: Query(name, ASKED) for split in qrels.values() for name in split}
    return Collection("c", corpus_from_rows((name, "", text, name) for name, text in texts.items()), queries, qrels)


def directions(*degrees: int) -> dict[str, str]:
    """Return one passage for each direction, named by it."""
    return {str(degree): WORDS[degree] for degree in degrees}


def pair(data: Collection, passage_id: str, question: str = ASKED) -> Pair:
    texts = dict(zip(data.corpus["_id"], data.corpus["text"], strict=True))
    return Pair(f"about {passage_id}", question, passage_id, texts[passage_id], "labelled")


def names(data: Collection, rows: np.ndarray) -> list[list[str | None]]:
    ids = data.corpus["_id"]
    return [[ids[row] if row >= 0 else None for row in each] for each in rows.tolist()]


def counts(mined) -> dict[str, int]:
    found = dict(zip(mined.outcomes["outcome"], mined.outcomes["candidates"], strict=True))
    return {outcome: int(count) for outcome, count in found.items() if count}


@pytest.fixture
def planted() -> Collection:
    """A positive at 10°, and everything that must not become its negative."""
    texts = {
        "positive": WORDS[10],
        "twin": f"  {WORDS[10].upper()}\n",
        "near": WORDS[12],
        "other gold": WORDS[30],
        "gold elsewhere": WORDS[40],
        **directions(25, 90, 120),
    }
    return collection(texts, train={"q1": {"positive": 1, "other gold": 1}}, test={"q2": {"gold elsewhere": 1}})


def test_the_compass_points_where_it_should(compass):
    vectors = encode(compass, [WORDS[0], WORDS[60], WORDS[180], f"{WORDS[0]} {WORDS[60]}"], "passage")
    assert vectors @ vectors[0] == pytest.approx(np.cos(np.radians([0, 60, 180, 30])), abs=1e-5)


def test_no_planted_false_negative_comes_out_and_each_is_counted(planted, compass):
    mined = mine(planted, labelled_pairs(planted)[:1], compass, Mining(1, ("dense",)))
    assert names(planted, mined.rows) == [["25"]]
    assert counts(mined) == {
        "kept": 1,
        "known positive": 3,
        "text of a positive": 1,
        "scores like a positive": 1,
        "not needed": 2,
    }
    assert mined.outcomes["outcome"].tolist() == list(OUTCOMES)
    assert mined.outcomes["candidates"].sum() == len(planted.corpus)


def test_some_candidates_of_every_outcome_are_shown_with_rank_and_scores(planted, compass):
    [asked] = labelled_pairs(planted)[:1]
    shown = {each.outcome: each for each in mine(planted, [asked], compass, Mining(1, ("dense",))).examples}
    assert {outcome: each.passage_id for outcome, each in shown.items()} == {
        "kept": "25",
        "known positive": "positive",
        "text of a positive": "twin",
        "scores like a positive": "near",
        "not needed": "90",
    }
    kept = shown["kept"]
    assert (kept.pair, kept.source, kept.rank) == (asked, "dense", 4)
    assert (kept.score, kept.positive_score) == pytest.approx(np.cos(np.radians([25, 10])), abs=1e-5)


@pytest.mark.parametrize("wanted", [0, 1, 3])
def test_no_more_examples_are_shown_than_wanted_each_of_another_pair(compass, wanted):
    data = collection(directions(0, 40, 50, 60, 70))
    pairs = [pair(data, "0", WORDS[n]) for n in range(5)]
    shown = mine(data, pairs, compass, Mining(1, ("dense",)), examples=wanted).examples
    kept = [each.pair.question for each in shown if each.outcome == "kept"]
    assert len(kept) == len(set(kept)) == wanted


@pytest.mark.parametrize(
    ("positive", "share", "first"),
    [(10, 0.95, 21), (10, 0.8, 39), (10, 1.0, 11), (120, 0.95, 122), (120, 0.8, 127), (120, 1.0, 121)],
)
def test_the_share_moves_the_border_even_where_the_positive_scores_below_zero(compass, positive, share, first):
    data = collection(directions(*range(1, 140)))
    mined = mine(data, [pair(data, str(positive))], compass, Mining(1, ("dense",), last=139, share=share))
    assert names(data, mined.rows) == [[str(first)]]
    assert counts(mined)["scores like a positive"] == first - 2


@pytest.mark.parametrize(
    ("first", "last", "negatives"),
    [
        (1, 50, ["30", "40", "50", "60"]),
        (3, 4, ["40", "50", None, None]),
        (5, 99, ["60", None, None, None]),
        (7, 9, [None] * 4),
    ],
)
def test_negatives_come_from_the_window_of_ranks(compass, first, last, negatives):
    data = collection(directions(0, 30, 40, 50, 60))
    mined = mine(data, [pair(data, "0")], compass, Mining(4, ("dense",), first, last))
    assert names(data, mined.rows) == [negatives]
    assert mined.outcomes["candidates"].sum() == max(0, min(5, last) - first + 1)


def test_the_window_holds_for_bm25_too(compass):
    texts = {"0": ASKED, **{str(n): " ".join([ASKED, *WORDS[150 : 150 + n]]) for n in range(1, 6)}}
    data = collection(texts)
    mined = mine(data, [pair(data, "0")], compass, Mining(4, ("bm25",), first=3, last=5))
    assert names(data, mined.rows) == [["2", "3", "4", None]]
    assert mined.examples[0].rank == 3


@pytest.mark.parametrize(
    ("sources", "negatives"),
    [
        (("dense",), ["both", "30", "40", "lexical 1"]),
        (("bm25",), ["both", "lexical 1", "lexical 2", None]),
        (("dense", "bm25"), ["both", "30", "lexical 1", "40"]),
        (("bm25", "dense"), ["both", "lexical 1", "30", "lexical 2"]),
    ],
)
def test_the_sources_are_taken_in_turn_without_duplicates(compass, sources, negatives):
    texts = {
        "0": ASKED,
        "both": f"{ASKED} {WORDS[40]}",
        "lexical 1": f"{ASKED} {WORDS[150]}",
        "lexical 2": f"{ASKED} {WORDS[150]} {WORDS[160]}",
        **directions(30, 40),
    }
    data = collection(texts)
    mined = mine(data, [pair(data, "0")], compass, Mining(4, sources))
    assert names(data, mined.rows) == [negatives]
    assert mined.outcomes["candidates"].sum() == (4 if sources == ("bm25",) else 6)
    assert counts(mined)["known positive"] == 1
    assert (mined.examples[0].source, mined.examples[0].rank) == (sources[0], 2)


def test_examples_name_the_source_and_its_rank(compass):
    data = collection({"0": ASKED, "lexical": f"{ASKED} {WORDS[150]}", **directions(30)})
    shown = mine(data, [pair(data, "0")], compass, Mining(1, ("bm25",))).examples[0]
    assert (shown.passage_id, shown.source, shown.rank) == ("lexical", "bm25", 2)


def test_a_text_is_taken_once(compass):
    data = collection({"0": ASKED, "a": WORDS[30], "b": f" {WORDS[30].upper()}", **directions(40)})
    mined = mine(data, [pair(data, "0")], compass, Mining(2, ("dense",)))
    assert names(data, mined.rows)[0][1] == "40"
    assert counts(mined) == {"kept": 2, "known positive": 1, "not needed": 1}


def test_top_takes_the_highest_ranked_and_random_draws_among_those_left(compass):
    data = collection(directions(0, 10, *range(30, 90)))
    asked = [pair(data, "0")]
    top = mine(data, asked, compass, Mining(5, ("dense",))).rows
    drawn = mine(data, asked, compass, Mining(5, ("dense",), draw="random")).rows
    assert names(data, top) == [["30", "31", "32", "33", "34"]]
    [random] = names(data, drawn)
    assert random != names(data, top)[0] and random == sorted(random)  # the highest ranked first
    assert set(random) <= set(map(str, range(30, 80)))


def test_random_negatives_are_reproducible_and_depend_on_no_other_pair(compass, monkeypatch):
    monkeypatch.setattr("ragbench.training.negatives._PAIRS", 2)
    data = collection(directions(*range(0, 190, 3)))
    pairs = [pair(data, str(degree), WORDS[degree]) for degree in (0, 30, 60, 90, 120)]
    mining = Mining(4, ("dense",), draw="random", seed=1)
    whole = mine(data, pairs, compass, mining).rows
    assert (mine(data, pairs, compass, mining).rows == whole).all()
    assert (mine(data, pairs[3:2:-1], compass, mining).rows == whole[3]).all()
    assert (mine(data, pairs, compass, Mining(4, ("dense",), draw="random", seed=2)).rows != whole).any()


def test_what_a_cross_encoder_takes_for_an_answer_is_dropped(compass):
    data = collection(directions(0, 30, 40, 50, 60))
    judged = {WORDS[0]: 0.5, WORDS[30]: 0.9, WORDS[40]: 0.3, WORDS[50]: 0.48, WORDS[60]: 0.1}

    def scores(texts: list[tuple[str, str]]) -> np.ndarray:
        assert {question for question, _ in texts} == {ASKED}
        return np.array([judged[text] for _, text in texts])

    mined = mine(data, [pair(data, "0")], compass, Mining(2, ("dense",)), cross_scores=scores)
    assert names(data, mined.rows) == [["40", "60"]]
    assert counts(mined) == {"kept": 2, "known positive": 1, "cross-encoder: an answer": 2}


@pytest.mark.parametrize("draw", ["top", "random"])
def test_nothing_that_the_cross_encoder_did_not_look_at_is_taken(compass, draw):
    data = collection(directions(0, *range(30, 60)))
    pairs = [pair(data, "0"), pair(data, "0", WORDS[1])]
    seen: list[str] = []

    def scores(texts: list[tuple[str, str]]) -> np.ndarray:
        seen.extend(text for _, text in texts)
        return np.array([1.0 if text == ASKED or WORDS.index(text) % 2 else 0.1 for _, text in texts])

    mined = mine(data, pairs, compass, Mining(5, ("dense",), draw=draw), cross_scores=scores)
    taken = {name for row in names(data, mined.rows) for name in row if name}
    assert taken <= {str(WORDS.index(text)) for text in seen}
    assert all(int(name) % 2 == 0 for name in taken)
    assert counts(mined)["kept"] + counts(mined)["cross-encoder: an answer"] <= 30 == len(seen) - 2
    assert mined.outcomes["candidates"].sum() == 2 * len(data.corpus)


def test_many_pairs_are_mined_in_batches_as_each_alone(compass, monkeypatch):
    data = collection(directions(*range(0, 190, 7)))
    pairs = [pair(data, str(degree), WORDS[degree]) for degree in range(0, 190, 7)]
    whole = mine(data, pairs, compass, Mining(3))
    monkeypatch.setattr("ragbench.training.negatives._PAIRS", 5)
    parts = mine(data, pairs, compass, Mining(3))
    assert (parts.rows == whole.rows).all()
    assert parts.outcomes.equals(whole.outcomes)


@pytest.mark.parametrize("per_positive", [0, 2])
def test_no_pairs_or_no_negatives_give_an_empty_result(compass, per_positive):
    data = collection(directions(0, 30))
    pairs = [] if per_positive else [pair(data, "0")]
    mined = mine(data, pairs, compass, Mining(per_positive))
    assert mined.rows.shape == (len(pairs), per_positive)
    assert (mined.examples, counts(mined)) == ([], {})
    assert filled(data, pairs, mined.rows, seed=0).shape == mined.rows.shape


@pytest.mark.parametrize(
    ("mining", "says"),
    [
        (Mining(draw="best"), "prep_negatives_draw 'best'.*top or random"),
        (Mining(sources=()), "prep_negatives_sources.*dense and bm25"),
        (Mining(sources=("dense", "splade")), "prep_negatives_sources.*splade"),
        (Mining(first=0), r"prep_negatives_ranks \[0, 50\]"),
        (Mining(first=9, last=8), r"prep_negatives_ranks \[9, 8\]"),
        (Mining(-1), "prep_negatives is -1"),
        (Mining(share=95), "prep_negatives_share is 95"),
        (Mining(index="tree"), "retriever_index 'tree'.*flat, hnsw, ivf"),  # type: ignore[arg-type]
    ],
)
def test_an_unknown_setting_is_an_error_that_names_the_parameter(compass, mining, says):
    with pytest.raises(RagbenchError, match=says):
        mine(collection(directions(0)), [], compass, mining)


def test_a_graph_index_finds_the_nearest_too(compass):
    data = collection(directions(*range(60)))
    mined = mine(data, [pair(data, "0")], compass, Mining(1, ("dense",), last=40, index="hnsw"))
    assert names(data, mined.rows) == [["19"]]


def test_ranks_that_an_index_leaves_empty_are_no_candidates(compass):
    data = collection(directions(*range(60)))
    mined = mine(data, [pair(data, "0")], compass, Mining(1, ("dense",), last=40, index="ivf"))
    assert names(data, mined.rows) == [[None]]  # the one cell that is searched holds the directions up to 18 at most
    assert 0 < mined.outcomes["candidates"].sum() < 19 and counts(mined)["known positive"] == 1


def test_filling_keeps_what_was_mined_and_gives_no_positive_and_no_text_twice(planted):
    pairs = labelled_pairs(planted)
    missing = np.full((2, 4), -1)
    missing[1, 1] = list(planted.corpus["_id"]).index("90")
    for seed in range(9):
        full = filled(planted, pairs, missing, seed)
        assert [set(row) for row in names(planted, full)] == [{"near", "25", "90", "120"}] * 2
        assert full[1, 1] == missing[1, 1]
    assert missing[0].tolist() == [-1] * 4


def test_filling_is_reproducible_and_depends_on_no_other_pair():
    data = collection(directions(*range(100)))
    pairs = [pair(data, str(n), WORDS[n]) for n in range(3)]
    missing = np.full((3, 4), -1)
    whole = filled(data, pairs, missing, seed=0)
    assert (filled(data, pairs[2:], missing[2:], seed=0) == whole[2]).all()
    assert (filled(data, pairs, missing, seed=1) != whole).any()
    assert (whole[0] != whole[1]).any()


def test_a_corpus_too_small_to_fill_up_is_an_error_that_says_what_to_do():
    data = collection({**directions(0, 30), "twin": WORDS[30].upper()})
    with pytest.raises(RagbenchError, match=r"too few different passages.*lower prep_negatives"):
        filled(data, [pair(data, "0")], np.full((1, 2), -1), seed=0)


texts = st.lists(st.sampled_from([*WORDS[:60:20], WORDS[20].upper(), " "]), max_size=2).map(" ".join).filter(str.strip)
labels = st.tuples(st.sampled_from(["train", "dev", "test"]), st.sampled_from(WORDS[:3]), st.integers(0, 1))


@given(data=st.data(), passages=st.lists(texts, min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_no_negative_is_a_positive_or_has_the_text_of_one(compass, data, passages):
    qrels: dict[str, dict[str, dict[str, int]]] = {"train": {}}
    queries: dict[str, Query] = {}
    for number, (split, question, score) in enumerate(data.draw(st.lists(labels, min_size=1, max_size=6))):
        gold = data.draw(st.sets(st.integers(0, len(passages) - 1), min_size=1, max_size=3))
        queries[f"q{number}"] = Query(f"q{number}", question)
        qrels.setdefault(split, {})[f"q{number}"] = {f"p{place}": score for place in sorted(gold)}
    corpus = corpus_from_rows(((f"p{n}", "", text, f"d{n}") for n, text in enumerate(passages)), batch_size=3)
    planted = Collection("c", corpus, queries, qrels)
    pairs = labelled_pairs(planted)
    mining = Mining(
        data.draw(st.integers(0, 4)),
        data.draw(st.sampled_from([("dense",), ("bm25", "dense")])),
        share=data.draw(st.sampled_from([0.5, 1.0])),
        draw=data.draw(st.sampled_from(["top", "random"])),
    )
    mined = mine(planted, pairs, compass, mining)
    whole = len(pairs) * len(passages) if mining.per_positive else 0
    assert mined.outcomes["candidates"].sum() == whole
    assert counts(mined).get("kept", 0) == (mined.rows >= 0).sum()
    bare = [" ".join(text.lower().split()) for text in passages]
    closed = [_closed(planted, each.question, bare) for each in pairs]
    for row, own in zip(mined.rows, closed, strict=True):
        assert not own & {bare[place] for place in row if place >= 0}
    if any(len(set(bare) - own) < mining.per_positive for own in closed):
        with pytest.raises(RagbenchError, match="too few"):
            filled(planted, pairs, mined.rows, seed=0)
        return
    for row, own in zip(filled(planted, pairs, mined.rows, seed=0), closed, strict=True):
        negatives = [bare[place] for place in row]
        assert (row >= 0).all() and len(set(negatives)) == len(negatives) and not own & set(negatives)


def _closed(planted: Collection, question: str, bare: list[str]) -> set[str]:
    """Return the texts of all positives of a question, over all splits."""
    return {
        bare[int(name[1:])]
        for qrels in planted.qrels.values()
        for query_id, gold in qrels.items()
        if planted.queries[query_id].text == question
        for name, score in gold.items()
        if score > 0
    }
