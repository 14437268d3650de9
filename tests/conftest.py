"""What the tests share: a cache of their own, tiny models built on the spot, small collections."""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

# Set before anything of ragbench or RAGAS is imported; no test may reach a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAGAS_DO_NOT_TRACK"] = "true"
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes with a thread a core each get in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test an empty cache folder, so that no result comes from an earlier test or run."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RAGBENCH_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the tests with real models: unpacking and encoding happen once a session."""
    return tmp_path_factory.mktemp("real-cache")


@pytest.fixture
def free_port() -> int:
    """Return a TCP port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


Reply = Callable[[BaseHTTPRequestHandler, int, dict], None]
"""What a server does with a request: the handler, how many requests came before, the request's JSON."""


@pytest.fixture
def serve() -> Iterator[Callable[[Reply], tuple[str, list[dict]]]]:
    """Return a function that starts a server and gives its base URL and the requests that it has seen."""
    servers = []

    def start(reply: Reply) -> tuple[str, list[dict]]:
        requests: list[dict] = []
        lock = threading.Lock()

        def answer(handler: BaseHTTPRequestHandler) -> None:
            body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
            with lock:
                number = len(requests)
                requests.append({"path": handler.path, "key": handler.headers["Authorization"], **body})
            with contextlib.suppress(OSError):  # the client may have hung up
                reply(handler, number, body)

        handler = type("Handler", (BaseHTTPRequestHandler,), {"do_POST": answer, "log_message": lambda *_: None})
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/v1", requests

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def chat_server(serve) -> Callable[[Callable[[list[dict]], str | None]], tuple[str, list[dict]]]:
    """Return a function that starts a server of chat completions; it gives the base URL and the requests seen.

    What it takes gets the messages and returns the reply, or None to refuse the prompt as too long.
    """

    def start(reply: Callable[[list[dict]], str | None]) -> tuple[str, list[dict]]:
        def answer(handler: BaseHTTPRequestHandler, _: int, body: dict) -> None:
            text = reply(body["messages"])
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            value = {"id": "1", "object": "chat.completion", "choices": [choice]}
            if text is None:
                value = {"error": {"message": "This model's maximum context length is 200 tokens."}}
            data = json.dumps(value).encode()
            handler.send_response(400 if text is None else 200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)

        return serve(answer)

    return start


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a bi-encoder of a few thousand random weights, saved as a Sentence-Transformers folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny-encoder")
    words = folder / "words"
    _word_tokenizer(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"], "[UNK]", "[PAD]").save_pretrained(words)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
    )
    _seeded(lambda: BertModel(config)).save_pretrained(words)
    transformer = Transformer(str(words))
    SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu").save(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="session")
def tiny_generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a causal language model of random weights with grouped heads and a chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-generator")
    tokenizer = _word_tokenizer(["[UNK]", "<|end|>"], "[UNK]", "<|end|>")
    tokenizer.eos_token = "<|end|>"
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=1024,
        eos_token_id=1,
        bos_token_id=1,
        pad_token_id=1,
    )
    _seeded(lambda: LlamaForCausalLM(config)).save_pretrained(folder)
    return folder


VOCABULARY = 400


def _word_tokenizer(special: list[str], unknown: str, padding: str):
    """Return a tokenizer over the letters and some hundred made-up words; unknown words fall into letters."""
    import itertools

    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(33, 127)]
    made_up = ["".join(parts) for parts in itertools.product("bdgklmnprst", "aeiou", "bdgklmnprst")]
    vocabulary = list(dict.fromkeys([*special, *letters, *("##" + c for c in letters), *made_up]))[:VOCABULARY]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown, pad_token=padding)


def _seeded(build):
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(7)
        return build()


@pytest.fixture
def toy_folder(tmp_path: Path) -> Path:
    """Write a valid collection in the BEIR layout: four passages, three questions, splits train and test."""
    folder = tmp_path / "toy"
    (folder / "qrels").mkdir(parents=True)
    passages = [
        ("p1", "Cats", "Cats sleep all day."),
        ("p2", "Dogs", "Dogs bark at night."),
        ("p3", "Fish", "Fish swim in water."),
        ("p4", "Birds", "Birds fly south."),
    ]
    rows = [{"_id": i, "title": t, "text": x, "metadata": {"document_id": f"d-{i}"}} for i, t, x in passages]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = [
        {"_id": "q1", "text": "What do cats do all day?", "answer": "They sleep. [p1]", "metadata": {"tags": []}},
        {
            "_id": "q2",
            "text": "Who barks and who swims?",
            "answer": "Dogs bark, fish swim. [p2] [p3]",
            "metadata": {"tags": ["multi"], "needs": [["p2"], ["p3"]]},
        },
        {
            "_id": "q3",
            "text": "How old do horses get?",
            "answer": "The documents do not say. [none]",
            "metadata": {"tags": ["unanswerable"], "split": "test"},
        },
    ]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    header = "query-id\tcorpus-id\tscore\n"
    (folder / "qrels" / "train.tsv").write_text(header + "q1\tp1\t1\n")
    (folder / "qrels" / "test.tsv").write_text(header + "q2\tp2\t1\nq2\tp3\t1\n")
    return folder
