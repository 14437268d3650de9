"""Answering: ragbench's greedy decoding against plain batched `generate`.

The same prompts of mixed lengths (questions of the embedded collection with their retrieved passages), in turn in one
process. Plain: batches of 8 in data-set order, left-padded, as in the documentation of transformers, in float32, which
is what a CPU gives by default; and, where ragbench takes another precision, once more in that one.
"""

import os
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from harness import arguments, finish, median_of, result
from transformers import AutoModelForCausalLM, AutoTokenizer

from ragbench.collection.load import load_collection
from ragbench.collection.schema import passages
from ragbench.devices import choose_dtype
from ragbench.evaluation.answer_metrics import token_f1
from ragbench.evaluation.evaluate import choose_questions
from ragbench.generation import local
from ragbench.generation.prompts import Message, build_prompt
from ragbench.models import resolve_model
from ragbench.retrieval.retrieve import Retriever, retrieve
from ragbench.retrieval.runs import top

MODEL = "SmolLM2-135M-Instruct"
NEW_TOKENS = 64


def conversations(questions: int) -> list[tuple[Message, ...]]:
    data = load_collection("pydocs")
    queries = choose_questions(data, ["train"], questions, seed=13)["train"]
    run = retrieve(data, queries, Retriever(method="bm25"))
    # One to five passages in turn: real traffic is as mixed as that.
    shown = {query.id: top(run, query.id, 1 + number % 5) for number, query in enumerate(queries)}
    known = passages(data, [passage_id for ids in shown.values() for passage_id in ids])
    count = local.token_counter(MODEL)
    return [
        build_prompt(q.id, q.text, [known[i] for i in shown[q.id]], count_tokens=count, max_context_tokens=768).messages
        for q in queries
    ]


def plainly(model: Any, tokenizer: Any, texts: list[str]) -> list[str]:
    found: list[str] = []
    for start in range(0, len(texts), 8):
        batch = tokenizer(texts[start : start + 8], return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            output = model.generate(**batch, do_sample=False, max_new_tokens=NEW_TOKENS)
        found += tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in found]


def ours(folder: Path, asked: list[tuple[Message, ...]]) -> list[str]:
    with tempfile.TemporaryDirectory() as cache:
        before, os.environ["RAGBENCH_CACHE"] = os.environ.get("RAGBENCH_CACHE"), cache
        found = local.complete(asked, model=str(folder), max_new_tokens=NEW_TOKENS, device="cpu")
        if before is None:
            del os.environ["RAGBENCH_CACHE"]
        else:
            os.environ["RAGBENCH_CACHE"] = before
    return [each.text for each in found]


def equal(one: list[str], other: list[str]) -> float:
    return mean(a == b for a, b in zip(one, other, strict=True))


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    repetitions, questions = (1, 16) if options.quick else (3, 64)
    asked, folder, dtype = conversations(questions), resolve_model(MODEL), choose_dtype("cpu")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    texts = [local.render(tokenizer, messages) for messages in asked]
    plain = {
        f"plain, {str(each).removeprefix('torch.')}": AutoModelForCausalLM.from_pretrained(folder, dtype=each).eval()
        for each in dict.fromkeys([torch.float32, dtype])
    }
    rows: list[dict[str, Any]] = []
    answers: dict[str, list[str]] = {}
    for repetition in range(repetitions):
        for name in (*plain, "ragbench"):
            started = time.perf_counter()
            answers[name] = ours(folder, asked) if name == "ragbench" else plainly(plain[name], tokenizer, texts)
            rows.append({"variant": name, "repetition": repetition, "seconds": time.perf_counter() - started})
    print(f"{len(texts)} prompts, {torch.get_num_threads()} threads; ragbench's time includes loading the model")
    print("Equal answers, and token F1 between them:")
    for name in plain:
        alike = mean(token_f1(a, b) for a, b in zip(answers["ragbench"], answers[name], strict=True))
        print(f"  ragbench and {name}: {equal(answers['ragbench'], answers[name]):.3f}, {alike:.3f}")
    first, *_, last = (*plain, *plain)
    seconds = {name: median_of(rows, name, "seconds") for name in (*plain, "ragbench")}
    faster, as_fast = (seconds[name] / seconds["ragbench"] for name in (first, last))
    same = equal(answers["ragbench"], answers[last])
    finish(
        Path(__file__).stem,
        options,
        rows,
        [
            result("speed-up over plain generate in float32", faster, 2.5, float.__ge__),
            result("speed-up in the same precision", as_fast, 1.5, float.__ge__),
            # In bfloat16 the rounding depends on what is in a batch, so that answers part where two tokens are close.
            *([result("share of equal answers", same, 1.0, float.__ge__)] if first == last else []),
        ],
    )


if __name__ == "__main__":
    main()
