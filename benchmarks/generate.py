"""Answering: ragbench's greedy decoding against plain batched `generate`.

The same prompts of mixed lengths (questions of the embedded collection with their retrieved passages), the same model
and precision, in turn in one process. Plain: batches of 8 in data-set order, left-padded, as in the documentation of
transformers.
"""

import os
import tempfile
import time
from pathlib import Path

import torch
from harness import arguments, finish, median_of, result

from ragbench.collection.load import load_collection
from ragbench.collection.schema import passages
from ragbench.devices import choose_dtype
from ragbench.evaluation.evaluate import choose_questions
from ragbench.generation import local
from ragbench.generation.prompts import build_prompt
from ragbench.models import resolve_model
from ragbench.retrieval.retrieve import Retriever, retrieve
from ragbench.retrieval.runs import top

MODEL = "SmolLM2-135M-Instruct"
NEW_TOKENS = 64


def main() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = arguments(__doc__.splitlines()[0])
    repetitions, questions = (1, 16) if options.quick else (3, 64)
    data = load_collection("pydocs")
    queries = choose_questions(data, ["train"], questions, seed=13)["train"]
    run = retrieve(data, queries, Retriever(method="bm25"))
    # One to five passages in turn: real traffic is as mixed as that.
    shown = {query.id: top(run, query.id, 1 + number % 5) for number, query in enumerate(queries)}
    known = passages(data, [passage_id for ids in shown.values() for passage_id in ids])
    count = local.token_counter(MODEL)
    conversations = [
        build_prompt(q.id, q.text, [known[i] for i in shown[q.id]], count_tokens=count, max_context_tokens=768).messages
        for q in queries
    ]
    folder = resolve_model(MODEL)
    dtype = choose_dtype("cpu")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    texts = [local.render(tokenizer, messages) for messages in conversations]
    rows = []
    equal = 1.0
    cache_with_model = os.environ.get("RAGBENCH_CACHE")
    for repetition in range(repetitions):
        started = time.perf_counter()
        plain = []
        for start in range(0, len(texts), 8):
            batch = tokenizer(texts[start : start + 8], return_tensors="pt", padding=True, add_special_tokens=False)
            with torch.inference_mode():
                output = model.generate(**batch, do_sample=False, max_new_tokens=NEW_TOKENS)
            plain += tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        rows.append({"variant": "plain", "repetition": repetition, "seconds": time.perf_counter() - started})
        with tempfile.TemporaryDirectory() as cache:
            os.environ["RAGBENCH_CACHE"] = cache
            started = time.perf_counter()
            ours = local.complete(conversations, model=str(folder), max_new_tokens=NEW_TOKENS, device="cpu")
            rows.append({"variant": "ragbench", "repetition": repetition, "seconds": time.perf_counter() - started})
        equal = min(equal, sum(a.strip() == b.text for a, b in zip(plain, ours, strict=True)) / len(ours))
    if cache_with_model is None:
        del os.environ["RAGBENCH_CACHE"]
    speedup = median_of(rows, "plain", "seconds") / median_of(rows, "ragbench", "seconds")
    print(
        f"{len(texts)} prompts, {dtype}, {torch.get_num_threads()} threads; ragbench's time includes loading the model"
    )
    finish(
        Path(__file__).stem,
        options,
        rows,
        [
            result("speed-up over plain generate", speedup, 1.5, float.__ge__),
            result("share of equal answers", equal, 1.0 if dtype == torch.float32 else 0.9, float.__ge__),
        ],
    )


if __name__ == "__main__":
    main()
