"""A bundle in LlamaIndex: a retriever, and a query engine that answers with its sources.

    retriever = BundleRetriever.load("bundles/docs/0001")
    engine = BundleQueryEngine.load("bundles/docs/0001")
    engine.query("How do I …?").response

Both also work asynchronously (`aretrieve`, `aquery`). Needs the extra ``llama-index``.
"""

import asyncio
from pathlib import Path

from llama_index.core.base.response.schema import Response
from llama_index.core.query_engine import CustomQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from pydantic import SkipValidation

from ragbench.deployment.answering import Deployed, Reply, Source, answer_all, open_bundle, search_all


class BundleRetriever(BaseRetriever):
    """LlamaIndex's retriever over a bundle's passages."""

    def __init__(self, deployed: Deployed, k: int = 4) -> None:
        super().__init__()
        self._deployed = deployed
        self._k = k

    @classmethod
    def load(cls, folder: str | Path, k: int = 4) -> "BundleRetriever":
        """Open a bundle, see `answering.open_bundle`."""
        return cls(open_bundle(Path(folder)), k)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [_node(source) for source in search_all(self._deployed, [query_bundle.query_str], self._k)[0]]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)


class BundleQueryEngine(CustomQueryEngine):
    """LlamaIndex's query engine that answers as the bundle does.

    Attributes:
        deployed: the opened bundle.
    """

    deployed: SkipValidation[Deployed]

    @classmethod
    def load(cls, folder: str | Path) -> "BundleQueryEngine":
        """Open a bundle, see `answering.open_bundle`."""
        return cls(deployed=open_bundle(Path(folder)))

    def custom_query(self, query_str: str) -> Response:
        """Answer a question."""
        return _response(answer_all(self.deployed, [query_str])[0])

    async def acustom_query(self, query_str: str) -> Response:
        """Answer a question."""
        return _response((await asyncio.to_thread(answer_all, self.deployed, [query_str]))[0])


def _response(reply: Reply) -> Response:
    return Response(response=reply.answer, source_nodes=[_node(source) for source in reply.sources])


def _node(source: Source) -> NodeWithScore:
    node = TextNode(id_=source.id, text=source.text, metadata={"id": source.id, "title": source.title})
    return NodeWithScore(node=node, score=source.score)
