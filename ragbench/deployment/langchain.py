"""A bundle in LangChain: a retriever, and a chain from a question to an answer with its sources.

    retriever = BundleRetriever.load("bundles/docs/0001")
    chain = answer_chain("bundles/docs/0001")
    chain.invoke("How do I …?")["answer"]

Both also work asynchronously (`ainvoke`) and in batches. Needs the extra ``langchain``.
"""

import asyncio
from pathlib import Path
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda
from pydantic import SkipValidation

from ragbench.deployment.answering import Deployed, Reply, Source, answer_all, open_bundle, search_all


class BundleRetriever(BaseRetriever):
    """LangChain's retriever over a bundle's passages.

    Attributes:
        deployed: the opened bundle.
        k: passages to return.
    """

    deployed: SkipValidation[Deployed]
    k: int = 4

    @classmethod
    def load(cls, folder: str | Path, k: int = 4) -> "BundleRetriever":
        """Open a bundle, see `answering.open_bundle`."""
        return cls(deployed=open_bundle(Path(folder)), k=k)

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return [_document(source) for source in search_all(self.deployed, [query], self.k)[0]]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun
    ) -> list[Document]:
        [found] = await asyncio.to_thread(search_all, self.deployed, [query], self.k)
        return [_document(source) for source in found]


def answer_chain(bundle: str | Path | Deployed) -> Runnable[str, dict[str, Any]]:
    """Return a chain from a question to {"question", "answer", "context"}; the context is LangChain's documents.

    Args:
        bundle: its folder, or a bundle that is open already.
    """
    deployed = bundle if isinstance(bundle, Deployed) else open_bundle(Path(bundle))

    def answer(question: str) -> dict[str, Any]:
        return _record(answer_all(deployed, [question])[0])

    async def answer_later(question: str) -> dict[str, Any]:
        return _record((await asyncio.to_thread(answer_all, deployed, [question]))[0])

    return RunnableLambda(answer, afunc=answer_later)


def _record(reply: Reply) -> dict[str, Any]:
    context = [_document(source) for source in reply.sources]
    return {"question": reply.question, "answer": reply.answer, "context": context}


def _document(source: Source) -> Document:
    metadata = {"id": source.id, "title": source.title, "score": source.score}
    return Document(page_content=source.text, id=source.id, metadata=metadata)
