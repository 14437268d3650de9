import dataclasses
import itertools
import json
import re
from collections import Counter
from importlib.resources import files

import pytest

from ragbench.collection import embedded
from ragbench.collection.beir import read_collection, write_collection
from ragbench.collection.embedded import embedded_collection, questions_without_gold
from ragbench.collection.load import fingerprint, load_collection
from ragbench.collection.pydocs import read_passages
from ragbench.collection.pydocs_modules import FAMILIES

SPLITS = ("train", "dev", "test", "ood")
FAMILY_OF = {module: family for family, modules in FAMILIES.items() for module in modules}
CITATIONS = re.compile(r"((?: \[[^\[\]\s]+\])+)$")


def committed():
    folder = files("ragbench.collection") / "pydocs_questions"
    return {s: [json.loads(line) for line in (folder / f"{s}.jsonl").read_text("utf-8").splitlines()] for s in SPLITS}


QUESTIONS = committed()
EVERY = [question for questions in QUESTIONS.values() for question in questions]


def words(text):
    return " ".join(text.split())


def stands(entry, passages):
    """Whether a passage known under the entry's name holds its quote."""
    return any(entry["name"] in p.names and words(entry.get("quote", "")) in words(p.text) for p in passages)


def cited(answer):
    return re.findall(r"\[(\S+)\]", CITATIONS.search(answer).group(1))


@pytest.fixture(scope="module")
def collection():
    return embedded_collection()


@pytest.fixture(scope="module")
def gold_of(collection):
    return {split: {name for gold in qrels.values() for name in gold} for split, qrels in collection.qrels.items()}


@pytest.fixture(scope="module")
def documents(collection):
    return dict(zip(collection.corpus["_id"], collection.corpus["document_id"], strict=True))


def test_there_are_as_many_questions_as_promised(collection):
    at_least = {"train": 1_050, "dev": 80, "test": 220, "ood": 90}
    assert {split: len(qrels) >= at_least[split] for split, qrels in collection.qrels.items()} == dict.fromkeys(
        SPLITS, True
    )
    assert len(collection.queries) == sum(map(len, collection.qrels.values()))


def test_there_are_enough_hard_questions_of_each_kind(collection):
    tags = Counter(tag for query in collection.queries.values() for tag in query.tags)
    assert set(tags) == {"multi", "unanswerable", "lay", "jargon"}
    assert tags["multi"] >= 50
    assert tags["unanswerable"] >= 40
    assert sum(bool({"lay", "jargon"} & set(query.tags)) for query in collection.queries.values()) >= 80


@pytest.mark.parametrize("split", SPLITS)
def test_each_split_has_questions_of_each_kind(collection, split):
    tags = Counter(tag for query_id in collection.qrels[split] for tag in collection.queries[query_id].tags)
    assert [tag for tag in ("multi", "unanswerable", "lay", "jargon") if tags[tag] < 3] == []


def test_the_questions_reach_at_least_forty_modules(gold_of, documents):
    modules = {documents[name] for names in gold_of.values() for name in names} & set(FAMILY_OF)
    assert len(modules) >= 40


def test_every_gold_passage_is_in_the_corpus(gold_of, documents):
    assert set().union(*gold_of.values()) - set(documents) == set()


def test_the_first_gold_of_every_kept_question_holds_its_quote(collection):
    passages = read_passages()
    missing = [
        (question["_id"], group[0]["name"])
        for question in EVERY
        if question["_id"] in collection.queries
        for group in question["gold"]
        if not group[0].get("quote") or not stands(group[0], passages)
    ]
    assert missing == []


def test_just_the_questions_whose_first_gold_is_missing_are_dropped(collection):
    passages = read_passages()
    lost = [q["_id"] for q in EVERY if not all(stands(group[0], passages) for group in q["gold"])]
    assert questions_without_gold() == lost
    assert [question["_id"] for question in EVERY if question["_id"] not in collection.queries] == lost
    assert len(lost) <= 0.05 * len(EVERY)


def test_nearly_all_further_gold_is_known_to_this_python():
    passages = read_passages()
    entries = [entry for question in EVERY for group in question["gold"] for entry in group[1:]]
    assert sum(stands(entry, passages) for entry in entries) >= 0.95 * len(entries)


def test_splits_share_no_gold_passage_and_no_gold_document(gold_of, documents):
    for one, other in itertools.combinations(SPLITS, 2):
        assert gold_of[one] & gold_of[other] == set()
        assert {documents[name] for name in gold_of[one]} & {documents[name] for name in gold_of[other]} == set()


def test_the_families_of_the_out_of_domain_split_are_unseen_elsewhere(gold_of, documents):
    families = {split: {FAMILY_OF.get(documents[name]) for name in names} - {None} for split, names in gold_of.items()}
    assert len(families["ood"]) >= 3
    assert families["ood"] & (families["train"] | families["dev"] | families["test"]) == set()


def test_no_gold_text_stands_in_two_splits(collection, gold_of):
    texts = dict(zip(collection.corpus["_id"], collection.corpus["text"], strict=True))
    splits_of = {}
    for split, names in gold_of.items():
        for name in names:
            splits_of.setdefault(words(texts[name]).lower(), set()).add(split)
    assert [text[:60] for text, splits in splits_of.items() if len(splits) > 1] == []


def test_ids_are_given_once_and_carry_their_split():
    assert [name for name, count in Counter(q["_id"] for q in EVERY).items() if count > 1] == []
    assert [
        q["_id"] for split, questions in QUESTIONS.items() for q in questions if not q["_id"].startswith(f"{split}-")
    ] == []


def test_no_question_is_asked_twice():
    bags = {question["_id"]: frozenset(re.findall(r"\w+", question["text"].lower())) for question in EVERY}
    pairs = itertools.combinations(bags, 2)
    assert [(a, b) for a, b in pairs if len(bags[a] & bags[b]) >= 0.6 * len(bags[a] | bags[b])] == []


def test_no_question_contains_the_name_of_its_answer():
    given_away = []
    for question in EVERY:
        for group in question["gold"]:
            name = re.split(r"[.:]", group[0]["name"])[-1]
            if len(name) > 3 and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", question["text"], re.IGNORECASE):
                given_away.append((question["_id"], name))
    assert given_away == []


def test_answers_cite_one_needed_passage_of_each_group(collection):
    for query in collection.queries.values():
        if query.answerable:
            citations = cited(query.answer)
            assert len(citations) == len(query.needs), query.id
            assert [c for c, group in zip(citations, query.needs, strict=True) if c not in group] == [], query.id


def test_answers_are_short_and_end_with_their_sources():
    for question in EVERY:
        body = CITATIONS.sub("", question["answer"])
        assert body != question["answer"], question["_id"]
        assert 3 <= len(body.split()) <= 60, question["_id"]
        assert body.endswith((".", "`")), question["_id"]


def test_unanswerable_questions_have_the_refusal_and_no_gold(collection):
    for split, qrels in collection.qrels.items():
        for query_id, gold in qrels.items():
            query = collection.queries[query_id]
            assert (query.answer == "The documents do not say. [none]") == (not query.answerable), query_id
            assert (gold == {}) == (not query.answerable), query_id
            assert query.split == (None if query.answerable else split), query_id


def test_multi_questions_need_passages_that_do_not_stand_in_for_each_other(collection):
    for query in collection.queries.values():
        assert ("multi" in query.tags) == (len(query.needs) > 1), query.id
        for one, other in itertools.combinations(query.needs, 2):
            assert set(one) & set(other) == set(), query.id


def test_the_needs_are_the_gold(collection):
    for qrels in collection.qrels.values():
        for query_id, gold in qrels.items():
            assert gold == {name: 1 for group in collection.queries[query_id].needs for name in group}


def test_tags_and_answers_are_those_committed(collection):
    for question in EVERY:
        query = collection.queries.get(question["_id"])
        if query:
            assert (query.text, list(query.tags)) == (question["text"], question["tags"])
            assert CITATIONS.sub("", query.answer) == CITATIONS.sub("", question["answer"])


def test_the_collection_is_the_same_each_time_and_by_its_name(collection):
    assert fingerprint(embedded_collection()) == fingerprint(load_collection("pydocs")) == fingerprint(collection)


def test_the_collection_survives_being_written_and_read(collection, tmp_path):
    write_collection(collection, tmp_path)
    again = read_collection(tmp_path)
    assert again.queries == collection.queries
    assert again.qrels == collection.qrels
    assert fingerprint(again) == fingerprint(collection)


def pretend(monkeypatch, change):
    """Let the interpreter's documentation be what `change` makes of each passage; None leaves it out."""
    changed = tuple(new for passage in read_passages() if (new := change(passage)) is not None)
    monkeypatch.setattr(embedded, "read_passages", lambda: changed)
    return embedded_collection()


def test_a_question_whose_gold_this_python_lacks_is_dropped(monkeypatch, collection):
    changed = pretend(monkeypatch, lambda p: None if "shutil.disk_usage" in p.names else p)
    asked = {q["_id"] for q in EVERY if any(group[0]["name"] == "shutil.disk_usage" for group in q["gold"])}
    assert asked
    assert set(collection.queries) - set(changed.queries) == asked
    assert set(questions_without_gold()) >= asked
    assert not asked & set(changed.qrels["test"])


def test_a_question_whose_quote_this_python_words_differently_is_dropped(monkeypatch, collection):
    def reworded(passage):
        if passage.id != "shutil.which":
            return passage
        return dataclasses.replace(passage, text="Finds a program by walking over the folders of the search path.")

    changed = pretend(monkeypatch, reworded)
    asked = {q["_id"] for q in EVERY if any(group[0]["name"] == "shutil.which" for group in q["gold"])}
    assert set(collection.queries) - set(changed.queries) == asked != set()


def test_a_multi_question_is_dropped_when_one_of_its_groups_is_missing(monkeypatch, collection):
    multi = next(q for q in QUESTIONS["train"] if len(q["gold"]) > 1 and q["_id"] in collection.queries)
    name = multi["gold"][-1][0]["name"]
    assert multi["_id"] not in pretend(monkeypatch, lambda p: None if name in p.names else p).queries


def test_a_further_gold_passage_that_is_missing_only_shortens_the_list(monkeypatch, collection):
    before = collection.queries["dev-001"].needs
    assert before == (("fnmatch.fnmatchcase", "fnmatch.fnmatch", "fnmatch"),)
    changed = pretend(monkeypatch, lambda p: None if p.id == "fnmatch.fnmatch" else p)
    assert changed.queries["dev-001"].needs == (("fnmatch.fnmatchcase", "fnmatch"),)
    assert changed.qrels["dev"]["dev-001"] == {"fnmatch.fnmatchcase": 1, "fnmatch": 1}


def test_line_breaks_elsewhere_do_not_lose_a_question(monkeypatch, collection):
    changed = pretend(monkeypatch, lambda p: dataclasses.replace(p, text=p.text.replace(" ", "\n   ")))
    assert set(changed.queries) == set(collection.queries)
    assert changed.qrels == collection.qrels


def test_the_citation_follows_a_quote_to_the_piece_that_holds_it(monkeypatch, collection):
    moved = pretend(monkeypatch, lambda p: dataclasses.replace(p, id=p.id + "#9") if p.id == "shutil.which" else p)
    assert collection.queries["test-003"].answer.endswith(" [shutil.which]")
    assert moved.queries["test-003"].answer.endswith(" [shutil.which#9]")
    assert moved.qrels["test"]["test-003"] == {"shutil.which#9": 1}


def test_a_python_without_any_of_the_documentation_keeps_the_unanswerable_questions(monkeypatch):
    changed = pretend(monkeypatch, lambda p: p if p.id == "len" else None)
    assert {query.answerable for query in changed.queries.values()} == {False}
    assert len(changed.queries) == sum("unanswerable" in question["tags"] for question in EVERY)
