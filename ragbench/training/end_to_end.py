"""Joint training of retriever and generator: the search without gradients, the scores of fresh embeddings with them.

The index only says which passages are weighed. The questions, and where that side learns the passages, are embedded
anew with gradients; the generator's likelihoods of the expected answer, each passage alone before the question, tell
which of them helped. As with the other trainings, finished and interrupted ones lie in the cache folder.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ragbench.cache import cache_folder
from ragbench.collection.load import fingerprint
from ragbench.collection.schema import Collection, passage_texts
from ragbench.errors import RagbenchError
from ragbench.files import sha256_folder, sha256_text
from ragbench.generation.generate import Generator, token_counter
from ragbench.generation.local import end_tokens, longest_input
from ragbench.models import model_hash, resolve_model
from ragbench.retrieval.encoder import Encoder, encode, open_encoder, share
from ragbench.retrieval.index import build_index
from ragbench.retrieval.retrieve import Retriever
from ragbench.training import guards
from ragbench.training.checkpoints import RECORD, STORE
from ragbench.training.generator_model import plain_model
from ragbench.training.joint_looks import Look, alarm
from ragbench.training.joint_models import Models, open_models
from ragbench.training.joint_progress import Progress
from ragbench.training.joint_questions import Asked, Prompter, asked_of
from ragbench.training.joint_session import Joint, Session, look, take_step

TRAIN, DEV = "train", "dev"
WARMUP = 0.1
_CODE = (
    "answer_likelihood.py", "answer_rows.py", "contrast.py", "end_to_end.py", "generator_model.py", "guards.py",
    "joint_looks.py", "joint_models.py", "joint_progress.py", "joint_questions.py", "joint_session.py",
    "objectives.py",
)  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """What joint training left.

    Attributes:
        retriever: a Sentence-Transformers folder.
        generator: the folder of an adapter; None where the generator did not learn.
        log: a row a step: step, the losses, gradient norms and entropies of `joint_session.take_step`.
        looks: dev before, in between and at the end.
        best_step: the look whose state was kept; 0 for the start.
        stopped: why training ended before its last step, or None.
        seconds: spent, looks at dev included, over all attempts.
        guards: what was checked.
    """

    retriever: Path
    generator: Path | None
    log: pd.DataFrame
    looks: tuple[Look, ...]
    best_step: int
    stopped: str | None
    seconds: float
    guards: tuple[guards.Guard, ...]


Watcher = Callable[[pd.DataFrame, Sequence[Look]], Any]


def train_jointly(
    collection: Collection,
    retriever: Retriever,
    generator: Generator,
    joint: Joint,
    *,
    seed: int = 0,
    watch: Watcher | None = None,
) -> Trained:
    """Train retriever and generator together on the train split; the state with the lowest loss on dev is kept.

    Args:
        retriever, generator: to start from; the generator has to be a local one.
        watch: called with the log and the looks after each look, e.g. to draw them.

    Raises:
        RagbenchError: a setting is impossible, there are no questions to learn from or to choose by, a model cannot be
            had, or the loss was no number.
    """
    joint.check()
    if generator.backend != "local":
        raise RagbenchError("Joint training needs the generator's likelihoods: set generator_backend to local.")
    train, dev = asked_of(collection, TRAIN), asked_of(collection, DEV, joint.dev_questions)
    folder = cache_folder() / STORE / _key(collection, retriever, generator, joint, seed)[:32]
    if not (folder / RECORD).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _train(collection, retriever, generator, joint, train, dev, seed, watch, folder)
        if joint.sides == "query":
            # The passages' encoder is the start's: there is nothing to encode again.
            routed = dataclasses.replace(retriever, model=str(folder / "retriever"), revision="")
            share(_encoder(retriever), _encoder(routed), passage_texts(collection), "passage")
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    log, looks = pd.DataFrame(record.pop("log")), tuple(Look(**entry) for entry in record.pop("looks"))
    if watch:
        watch(log, looks)
    checked = tuple(guards.Guard(**guard) for guard in record.pop("guards"))
    made = folder / "generator"
    return Trained(folder / "retriever", made if made.is_dir() else None, log, looks, guards=checked, **record)


def _key(collection: Collection, retriever: Retriever, generator: Generator, joint: Joint, seed: int) -> str:
    weights = [model_hash(resolve_model(part.model, part.revision)) for part in (retriever, generator)]
    plain = [repr(dataclasses.replace(part, model="", revision="")) for part in (retriever, generator)]
    return sha256_text(
        fingerprint(collection), *weights, *plain, repr(joint), str(seed), sha256_folder(Path(__file__).parent, _CODE)
    )


def _train(
    collection: Collection,
    retriever: Retriever,
    generator: Generator,
    joint: Joint,
    train: list[Asked],
    dev: list[Asked],
    seed: int,
    watch: Watcher | None,
    folder: Path,
) -> None:
    models = open_models(
        retriever, generator, sides=joint.sides, train_generator=joint.train_generator, rank=joint.rank, seed=seed
    )
    session = _session(collection, retriever, generator, joint, models)
    optimizer = torch.optim.AdamW(_groups(models, joint), weight_decay=0.0)
    progress = Progress(models, optimizer, folder)
    progress.resume(session)
    with tqdm(total=joint.steps, initial=progress.step, desc="looking at dev", unit="step") as bar:
        if not progress.looks:
            progress.note(look(session, dev, 0), session)
        bar.set_description("training")
        while progress.step < joint.steps and progress.stopped is None:
            _set_rates(optimizer, joint, progress.step)
            batch = _batch(train, joint.questions, progress.step, seed)
            progress.log.append({"step": progress.step + 1, **take_step(session, batch, optimizer)})
            progress.step += 1
            if progress.step % joint.look_every == 0 or progress.step == joint.steps:
                bar.set_description("looking at dev")
                progress.stopped = alarm(progress.looks[0], seen := look(session, dev, progress.step))
                progress.note(seen, session)
                if watch:
                    watch(pd.DataFrame(progress.log), progress.looks)
                bar.set_description("training")
            bar.update()
            bar.set_postfix({"loss": f"{progress.log[-1]['loss']:.3f}", "dev": f"{progress.looks[-1].loss:.3f}"})
    progress.finish(generator)


def _session(
    collection: Collection, retriever: Retriever, generator: Generator, joint: Joint, models: Models
) -> Session:
    vectors = encode(_encoder(retriever), passage_texts(collection), "passage")
    prompter = Prompter(
        collection,
        generator,
        models.tokenizer,
        tuple(end_tokens(plain_model(models.generator), models.tokenizer)),
        longest_input(generator.model, generator.revision),
        token_counter(generator),
    )
    return Session(joint, models, prompter, passage_texts(collection), vectors, build_index(vectors))


def _encoder(retriever: Retriever) -> Encoder:
    return open_encoder(
        retriever.model,
        revision=retriever.revision,
        max_tokens=retriever.max_tokens,
        device=retriever.device,
        dtype=retriever.dtype,
    )


def _groups(models: Models, joint: Joint) -> list[dict[str, Any]]:
    rates = {"retriever": joint.retriever_learning_rate, "generator": joint.generator_learning_rate}
    trained = models.trained()
    return [
        {"params": [weight for name, weight in trained.items() if name.startswith(part)], "lr": rate, "peak": rate}
        for part, rate in rates.items()
        if any(name.startswith(part) for name in trained)
    ]


def _set_rates(optimizer: torch.optim.Optimizer, joint: Joint, step: int) -> None:
    """Rise over the first tenth of the steps, then fall to 0; the first step is not lost at a rate of 0."""
    warm = max(1, round(WARMUP * joint.steps))
    share = min((step + 1) / warm, (joint.steps - step) / max(1, joint.steps - warm))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


def _batch(train: Sequence[Asked], size: int, step: int, seed: int) -> list[Asked]:
    """Return the questions of a step: every epoch in another order, which only the seed and the epoch decide."""
    places = range(step * size, (step + 1) * size)
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(len(train))
              for epoch in {place // len(train) for place in places}}  # fmt: skip
    chosen = dict.fromkeys(int(orders[place // len(train)][place % len(train)]) for place in places)
    return [train[place] for place in chosen]
