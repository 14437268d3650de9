"""Encoding: ragbench's cached, length-sorted encoding against plain `SentenceTransformer.encode`.

The same passages and questions of the embedded collection, in turn in one process; nDCG@10 beside the speed. `cold`
starts from an empty cache, `warm` from a full one.
"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import arguments, finish, median_of, result

from ragbench.collection.load import load_collection
from ragbench.collection.schema import corpus_ids, passage_texts
from ragbench.devices import cpu_gains_from_bfloat16, cpu_has_bfloat16
from ragbench.evaluation.evaluate import choose_questions
from ragbench.evaluation.ranking import ranking_scores
from ragbench.models import resolve_model
from ragbench.retrieval.encoder import encode, load_sentence_transformer, open_encoder
from ragbench.retrieval.index import build_index, search


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    repetitions = 1 if options.quick else 3
    data = load_collection("pydocs")
    split = "train"  # most questions; nothing is tuned here
    queries = choose_questions(data, [split])[split]
    rows_used = np.arange(0, len(data.corpus), 8 if options.quick else 1)
    texts = passage_texts(data, rows_used)
    ids = corpus_ids(data).to_pylist()
    folder = resolve_model("all-MiniLM-L6-v2")

    def quality(vectors: np.ndarray, asked: np.ndarray) -> float:
        scores, found = search(build_index(vectors), asked, 100)
        run = {
            q.id: {ids[rows_used[r]]: float(s) for r, s in zip(found[i], scores[i], strict=True)}
            for i, q in enumerate(queries)
        }
        table = ranking_scores(queries, data.qrels[split], run)
        return float(table.loc[table["metric"] == "ndcg@10", "value"].mean())

    import torch
    from sentence_transformers import SentenceTransformer

    plain = SentenceTransformer(str(folder), device="cpu")
    plain.max_seq_length = 256
    warm_up = texts.to_pylist()[:64]
    plain.encode(warm_up)
    rows = []
    for repetition in range(repetitions):
        started = time.perf_counter()
        vectors = plain.encode(texts.to_pylist(), normalize_embeddings=True)
        seconds = time.perf_counter() - started
        asked = plain.encode([q.text for q in queries], normalize_embeddings=True)
        rows.append(
            {"variant": "plain", "repetition": repetition, "seconds": seconds, "ndcg@10": quality(vectors, asked)}
        )
        with tempfile.TemporaryDirectory() as cache:
            os.environ["RAGBENCH_CACHE"] = cache
            encoder = open_encoder("all-MiniLM-L6-v2", device="cpu")
            load_sentence_transformer(encoder.folder, encoder.key, 256, "cpu", encoder.dtype).encode(warm_up)
            for variant in ("cold", "warm"):
                started = time.perf_counter()
                vectors = encode(encoder, texts, "passage")
                seconds = time.perf_counter() - started
                asked = encode(encoder, [q.text for q in queries], "query")
                score = quality(vectors, asked)
                rows.append({"variant": variant, "repetition": repetition, "seconds": seconds, "ndcg@10": score})
    print(
        f"{len(texts)} passages; bfloat16: has it {cpu_has_bfloat16()}, gains from it {cpu_gains_from_bfloat16()}; "
        f"{torch.get_num_threads()} threads"
    )
    reference = median_of(rows, "plain", "seconds")
    difference = max(abs(median_of(rows, v, "ndcg@10") - median_of(rows, "plain", "ndcg@10")) for v in ("cold", "warm"))
    finish(
        Path(__file__).stem,
        options,
        rows,
        [
            result(
                "cold speed-up over plain encode", reference / median_of(rows, "cold", "seconds"), 1.3, float.__ge__
            ),
            result(
                "warm speed-up over plain encode", reference / median_of(rows, "warm", "seconds"), 50.0, float.__ge__
            ),
            result("difference in nDCG@10", difference, 0.002, float.__le__),
        ],
    )


if __name__ == "__main__":
    main()
