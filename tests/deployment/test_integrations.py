import asyncio

import pytest

from ragbench.deployment import langchain, llama_index
from ragbench.deployment.answering import answer_all, open_bundle, search_all

QUESTIONS = ["kak gag", "sas rar"]


@pytest.fixture
def own(bundle):
    """What ragbench itself finds and answers."""
    deployed = open_bundle(bundle)
    return search_all(deployed, QUESTIONS, 4), answer_all(deployed, QUESTIONS)


def test_langchain_finds_and_answers_the_same(bundle, own):
    found, replies = own
    retriever, chain = langchain.BundleRetriever.load(bundle), langchain.answer_chain(bundle)

    async def later():
        return [await retriever.ainvoke(q) for q in QUESTIONS], await chain.abatch(QUESTIONS)

    for documents, answers in (
        ([retriever.invoke(q) for q in QUESTIONS], chain.batch(QUESTIONS)),
        asyncio.run(later()),
    ):
        for line, expected in zip(documents, found, strict=True):
            assert [(d.id, d.page_content, d.metadata["title"]) for d in line] == [
                (source.id, source.text, source.title) for source in expected
            ]
            assert [d.metadata["score"] for d in line] == pytest.approx([source.score for source in expected], abs=1e-5)
        for answer, reply in zip(answers, replies, strict=True):
            assert (answer["question"], answer["answer"]) == (reply.question, reply.answer)
            assert [document.id for document in answer["context"]] == [source.id for source in reply.sources]


def test_llama_index_finds_and_answers_the_same(bundle, own):
    found, replies = own
    retriever, engine = llama_index.BundleRetriever.load(bundle), llama_index.BundleQueryEngine.load(bundle)

    async def later():
        return [await retriever.aretrieve(q) for q in QUESTIONS], [await engine.aquery(q) for q in QUESTIONS]

    now = [retriever.retrieve(q) for q in QUESTIONS], [engine.query(q) for q in QUESTIONS]
    for nodes, answers in (now, asyncio.run(later())):
        for line, expected in zip(nodes, found, strict=True):
            assert [(n.node.node_id, n.node.get_content()) for n in line] == [(s.id, s.text) for s in expected]
            assert [n.score for n in line] == pytest.approx([source.score for source in expected], abs=1e-5)
        for answer, reply in zip(answers, replies, strict=True):
            assert answer.response == reply.answer
            assert [node.node.node_id for node in answer.source_nodes] == [source.id for source in reply.sources]


def test_many_threads_may_ask_one_opened_bundle(bundle, own):
    chain = langchain.answer_chain(open_bundle(bundle))
    answers = chain.batch(QUESTIONS * 8, config={"max_concurrency": 8})
    assert [answer["answer"] for answer in answers] == [reply.answer for reply in own[1]] * 8
