"""The Python examples of docs/deployment.md are run as they stand, with a bundle and a service of the tests."""

import re
from pathlib import Path

import pytest

from ragbench.deployment.answerer import Answerer, Limits
from ragbench.deployment.answering import answer_all, open_bundle
from ragbench.deployment.query_log import QueryLog
from ragbench.deployment.rehearsal import serving

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
QUESTION = "How do I copy a folder with everything in it?"


def test_there_is_one_example_each_for_langchain_llama_index_and_openai():
    first_lines = [example.splitlines()[0] for example in EXAMPLES]
    assert [next(name for name in ("langchain", "llama_index", "openai") if name in line) for line in first_lines] == [
        "langchain", "llama_index", "openai",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["chain", "response"])
def test_the_example_answers_as_the_bundle_does(bundle, name):
    [example] = [each for each in EXAMPLES if re.search(rf"^{name} = ", each, re.M)]
    known: dict = {}
    exec(example.replace("bundles/quickstart/0001", str(bundle)), known)
    answer = known["response"].response if name == "response" else known["chain"].invoke(QUESTION)["answer"]
    assert answer == answer_all(open_bundle(bundle), [QUESTION])[0].answer


def test_the_openai_example_asks_the_service(bundle, tmp_path):
    [example] = [each for each in EXAMPLES if "OpenAI(" in each]
    answerer = Answerer(open_bundle(bundle), "", QueryLog(tmp_path / "q.sqlite"), Limits())
    with serving(answerer) as url:
        known: dict = {}
        exec(example.replace("http://127.0.0.1:8000/v1", url), known)
        assert known["reply"].choices[0].message.content == answer_all(answerer.deployed, ["How do I …?"])[0].answer
        assert known["reply"].model_extra["sources"]
