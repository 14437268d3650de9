from dataclasses import replace

import pytest

from ragbench.collection.schema import Query
from ragbench.deployment.answering import answer_all, open_bundle, search_all
from ragbench.deployment.bundle import pack
from ragbench.errors import RagbenchError
from ragbench.generation.generate import answer_run
from ragbench.retrieval.retrieve import retrieve

QUESTIONS = ["bab dad", "kak gag", "sas rar", "a word that nobody knows"]


@pytest.mark.parametrize("method", ["dense", "bm25", "fusion"])
def test_a_bundle_answers_as_the_system_was_evaluated(contents, tmp_path, method):
    system = replace(contents.system, retriever=replace(contents.system.retriever, method=method))
    pack(replace(contents, system=system), tmp_path / "b")
    replies = answer_all(open_bundle(tmp_path / "b"), QUESTIONS)
    queries = [Query(str(n), text) for n, text in enumerate(QUESTIONS)]
    run = retrieve(contents.collection, queries, system.retriever)
    expected = answer_run(contents.collection, queries, run, system.generator)
    assert [reply.answer for reply in replies] == [answer.answer for answer in expected]
    assert [tuple(s.id for s in reply.sources) for reply in replies] == [answer.context_ids for answer in expected]
    assert [reply.question for reply in replies] == QUESTIONS


def test_what_is_asked_leaves_nothing_in_the_caches(bundle, own_cache):
    deployed = open_bundle(bundle)
    before = {path: path.read_bytes() for path in own_cache.rglob("*") if path.is_file()}
    answer_all(deployed, QUESTIONS)
    search_all(deployed, QUESTIONS)
    assert {path: path.read_bytes() for path in own_cache.rglob("*") if path.is_file()} == before


def test_searching_gives_the_passages_best_first(bundle, contents):
    [found] = search_all(open_bundle(bundle), ["kak gag"], depth=4)
    run = retrieve(contents.collection, [Query("x", "kak gag")], contents.system.retriever)["x"]
    assert [source.id for source in found] == list(run)[:4]
    assert [source.score for source in found] == pytest.approx(list(run.values())[:4], abs=1e-5)
    assert found[0].text and found == sorted(found, key=lambda source: -source.score)


def test_no_questions_have_no_answers_and_the_same_one_twice_has_two(bundle):
    deployed = open_bundle(bundle)
    assert answer_all(deployed, []) == [] and search_all(deployed, []) == []
    one, other = answer_all(deployed, ["bab dad", "bab dad"])
    assert one.answer == other.answer and one.sources == other.sources


def test_a_damaged_bundle_is_not_opened(bundle):
    with (bundle / "index.faiss").open("ab") as file:
        file.write(b"x")
    with pytest.raises(RagbenchError, match=r"index\.faiss is not what was packed"):
        open_bundle(bundle)


def test_a_bundle_without_a_generator_searches_and_says_that_it_cannot_answer(contents, tmp_path):
    silent = replace(contents.system, generator=replace(contents.system.generator, backend="none"))
    pack(replace(contents, system=silent, tuned_generator=False), tmp_path / "b")
    deployed = open_bundle(tmp_path / "b")
    assert search_all(deployed, ["bab dad"])[0]
    with pytest.raises(RagbenchError, match="has no generator"):
        answer_all(deployed, ["bab dad"])


def test_a_served_generator_is_asked_without_its_answers_being_kept(contents, tmp_path, chat_server, own_cache):
    url, requests = chat_server(lambda messages: "said " + messages[-1]["content"][-7:])
    served = replace(contents.system.generator, backend="endpoint", endpoint=url, model="some-model")
    pack(replace(contents, system=replace(contents.system, generator=served), tuned_generator=False), tmp_path / "b")
    deployed = open_bundle(tmp_path / "b")
    for _ in range(2):
        assert [reply.answer for reply in answer_all(deployed, ["bab dad"])] == ["said bab dad"]
    assert len(requests) == 2 and not (own_cache / "answers.sqlite").exists()
