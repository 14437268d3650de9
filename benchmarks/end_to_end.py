"""A step of joint training: ragbench's against a straightforward one, the same questions, models and loss.

The straightforward step reads every passage in a forward pass of its own, computes the logits of all its tokens and
keeps the graph of the whole batch until the end. Both compute the gradient of RAG-Sequence's marginal likelihood with
respect to the retriever and the generator's adapter, in the same precision. Each variant runs in a process of its own,
so that its peak memory is its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from harness import arguments, finish, median_of, result

QUESTIONS, PASSAGES = 4, 4


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--variant", choices=["plain", "ragbench"], help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=3)


def measure(variant: str, repeats: int) -> list[dict[str, Any]]:
    """Take the same steps without moving anything; return seconds and loss of each but the first, which warms up."""
    from ragbench.collection.load import load_collection
    from ragbench.generation.generate import Generator
    from ragbench.retrieval.retrieve import Retriever
    from ragbench.training import joint_session
    from ragbench.training.end_to_end import _session
    from ragbench.training.joint_models import open_models
    from ragbench.training.joint_questions import asked_of
    from ragbench.training.joint_session import Joint

    data = load_collection("pydocs")
    retriever, generator = Retriever(device="cpu"), Generator(max_context_tokens=512, device="cpu")
    joint = Joint(objective="rag_sequence", passages=PASSAGES, questions=QUESTIONS, contrastive=0.0)
    models = open_models(retriever, generator, sides="query", train_generator=True, rank=16, seed=0)
    session = _session(data, retriever, generator, joint, models)
    asked = asked_of(data, "train")
    still = torch.optim.SGD([{"params": list(models.trained().values()), "lr": 0.0}])
    rows = []
    for number in range(repeats + 1):
        batch = asked[number * QUESTIONS : (number + 1) * QUESTIONS]
        started = time.perf_counter()
        if variant == "ragbench":
            loss = joint_session.take_step(session, batch, still)["generator_loss"]
        else:
            loss = plain_step(session, batch)
        rows.append({"variant": variant, "seconds": time.perf_counter() - started, "loss": loss})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [row | {"peak GiB": peak} for row in rows[1:]]


def plain_step(session: Any, batch: Any) -> float:
    from ragbench.retrieval.index import search
    from ragbench.training.joint_models import embed_texts

    models, joint = session.models, session.joint
    for weight in models.trained().values():
        weight.grad = None
    total: Any = 0.0
    for asked in batch:
        with models.autocast():
            query = embed_texts(models.queries, [asked.query.text], "query")
        [found] = search(session.index, query.detach().float().numpy(), joint.passages)[1]
        similarities = query @ torch.from_numpy(session.vectors[found]).T
        answers = []
        for row in session.prompter.alone(asked, found):
            ids = torch.tensor([[*row.prompt, *row.answer]])
            with models.autocast():
                logits = models.generator(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
            log_p = torch.log_softmax(logits.float(), dim=-1)[len(row.prompt) - 1 : -1]
            answers.append(log_p.gather(1, torch.tensor(row.answer)[:, None]).sum())
        log_passages = torch.log_softmax(similarities[0] / joint.temperature, dim=-1)
        total = total - torch.logsumexp(log_passages + torch.stack(answers), dim=0) / len(batch)
    total.backward()
    return float(total.detach())


def main() -> None:
    chosen = arguments(__doc__.splitlines()[0], options)
    repeats = 1 if chosen.quick else chosen.repeats
    if chosen.variant:
        print(json.dumps(measure(chosen.variant, repeats)))
        return
    rows: list[dict[str, Any]] = []
    for variant in ("plain", "ragbench"):
        command = [sys.executable, __file__, "--variant", variant, "--repeats", str(repeats)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows += json.loads(done.stdout.splitlines()[-1])
    ratio = median_of(rows, "plain", "seconds") / median_of(rows, "ragbench", "seconds")
    losses = [[row["loss"] for row in rows if row["variant"] == name] for name in ("plain", "ragbench")]
    apart = max(abs(one - other) / abs(one) for one, other in zip(*losses, strict=True))
    memory = median_of(rows, "ragbench", "peak GiB") / median_of(rows, "plain", "peak GiB")
    finish(
        Path(__file__).stem,
        chosen,
        rows,
        [
            result("times as fast a step", ratio, 2.0, float.__ge__),
            result("largest relative difference of the loss", apart, 0.02, float.__le__),
            result("peak memory over that of the straightforward step", memory, 1.0, float.__le__),
        ],
    )


if __name__ == "__main__":
    main()
