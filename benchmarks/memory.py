"""Memory: reading, encoding and indexing 100,000 passages in one process.

The passages are made up, of 3 to 12 words, written to a collection folder first; the peak is the operating system's own
figure for the whole process. The bi-encoder is the default one; texts are short so that the run takes minutes.
"""

import json
import os
import random
import resource
import tempfile
import time
from pathlib import Path

from harness import arguments, finish, result


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    count = 5_000 if options.quick else 100_000
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "big"
        _write(folder, count)
        os.environ["RAGBENCH_CACHE"] = str(Path(scratch) / "cache")
        from ragbench.collection.beir import read_collection
        from ragbench.collection.schema import passage_texts
        from ragbench.retrieval.encoder import encode, open_encoder
        from ragbench.retrieval.index import build_index

        started = time.perf_counter()
        data = read_collection(folder)
        read = time.perf_counter() - started
        vectors = encode(open_encoder("all-MiniLM-L6-v2", device="cpu"), passage_texts(data), "passage")
        index = build_index(vectors)
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows = [
        {"variant": "ragbench", "passages": index.ntotal, "read_seconds": read, "seconds": seconds, "peak_gib": peak}
    ]
    finish(Path(__file__).stem, options, rows, [result("peak memory in GiB", peak, 3.0, float.__lt__)])


def _write(folder: Path, count: int) -> None:
    draw = random.Random(13)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(3, 9))) for _ in range(5000)]
    (folder / "qrels").mkdir(parents=True)
    with (folder / "corpus.jsonl").open("w") as file:
        for number in range(count):
            text = " ".join(draw.choices(words, k=draw.randint(3, 12)))
            file.write(json.dumps({"_id": f"p{number}", "title": f"Passage {number}", "text": text}) + "\n")
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "anything", "answer": null}\n')
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tp0\t1\n")


if __name__ == "__main__":
    main()
