"""One step of joint training, and one look at dev: what end_to_end repeats."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import faiss
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ragbench.errors import RagbenchError
from ragbench.retrieval.index import build_index, search
from ragbench.training import objectives
from ragbench.training.answer_likelihood import answer_log_likelihoods
from ragbench.training.contrast import contrast
from ragbench.training.joint_looks import Look
from ragbench.training.joint_models import Models, embed_corpus, embed_texts, texts_of
from ragbench.training.joint_questions import Asked, Prompter

MAX_NORM = 1.0
"""Longer gradients are cut to this length, the retriever's and the generator's each for itself."""


@dataclass(frozen=True)
class Joint:
    """How the two are trained together.

    Attributes:
        objective: ``distillation`` (the retriever learns the generator's preferences, the generator from its own loss),
            ``rag_sequence`` (both from the marginal likelihood), or ``emdr2`` (the retriever from the marginal
            likelihood, the generator from its own loss).
        sides: ``query`` (passages keep their embeddings, so the index stays true) or ``both``.
        train_generator: whether the generator learns too; else its likelihoods are kept and not computed again.
        passages: K, how many passages of a question are weighed against each other.
        over_retrieve: where both sides learn, passages that are taken from the index and embedded anew, to find the K
            among them that are now the best.
        temperature: of the retriever's distribution over the K, see `objectives.passage_log_probs`.
        target_temperature, direction: of distillation, see `objectives.distillation`.
        contrastive: weight of the contrastive loss with the gold passages, which keeps what was learned before.
        retriever_learning_rate, generator_learning_rate: at their peak.
        rank: of a fresh adapter, where the generator learns and has none yet.
        questions: of one step.
        steps: how many are taken.
        look_every: steps between two looks at dev; where both sides learn, the index is made anew for each.
        dev_questions: questions of dev to look at; 0 for all.
    """

    objective: Literal["distillation", "rag_sequence", "emdr2"] = "distillation"
    sides: Literal["query", "both"] = "query"
    train_generator: bool = True
    passages: int = 4
    over_retrieve: int = 32
    temperature: float = 0.05
    target_temperature: float = 0.1
    direction: str = "to_generator"
    contrastive: float = 0.5
    retriever_learning_rate: float = 1e-5
    generator_learning_rate: float = 1e-4
    rank: int = 16
    questions: int = 8
    steps: int = 24
    look_every: int = 8
    dev_questions: int = 24

    def check(self) -> None:
        """Raise a `RagbenchError` that names the parameter if a value is impossible."""
        known = {
            "objective": objectives.OBJECTIVES, "sides": ("query", "both"), "direction": objectives.DIRECTIONS
        }  # fmt: skip
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise RagbenchError(f"end_to_end_{name} '{getattr(self, name)}' is unknown; use {', '.join(choices)}.")
        lowest = {"passages": 2, "questions": 1, "steps": 1, "look_every": 1}
        for name, value in lowest.items():
            if getattr(self, name) < value:
                raise RagbenchError(f"end_to_end_{name} must be at least {value}, found {getattr(self, name)}.")


@dataclass
class Session:
    """What lasts from step to step.

    Attributes:
        texts: of all passages, in the order of the corpus; in Arrow, as there may be millions.
        vectors, index: their embeddings as of the last refresh, and the index of them.
        lengths: question → tokens of its answer.
        likelihoods: (question, corpus row) → summed log-likelihood of the answer, kept while the generator is frozen.
    """

    joint: Joint
    models: Models
    prompter: Prompter
    texts: pa.ChunkedArray
    vectors: np.ndarray
    index: faiss.Index
    lengths: dict[str, int] = field(default_factory=dict)
    likelihoods: dict[tuple[str, int], float] = field(default_factory=dict)


def refresh(session: Session) -> None:
    """Embed all passages anew and index them."""
    session.vectors = embed_corpus(session.models, session.texts)
    session.index = build_index(session.vectors)


def take_step(session: Session, batch: Sequence[Asked], optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Learn from some questions; return the losses, gradient norms and entropies.

    The gradient is that of the whole batch, however it is computed in parts: the generator's part question by question
    with the retriever's distribution fixed, then the retriever's with the likelihoods fixed.

    Raises:
        RagbenchError: a loss was no number.
    """
    joint, models = session.joint, session.models
    optimizer.zero_grad(set_to_none=True)
    with models.autocast():
        queries = embed_texts(models.queries, [asked.query.text for asked in batch], "query")
    rows = _candidates(session, queries.detach())
    pool = sorted({int(row) for row in rows.flat} | {row for asked in batch for row in asked.gold})
    passages = _embedded(session, pool)
    place = torch.from_numpy(np.searchsorted(pool, rows)).to(queries.device)
    log_p = objectives.passage_log_probs((queries[:, None] * passages[place]).sum(dim=-1), joint.temperature)
    generator_loss, sums = _teach_generator(session, batch, rows, log_p.detach())
    lengths = _answer_lengths(session, batch)[:, None]
    if joint.objective == "distillation":
        retriever_loss = objectives.distillation(
            log_p, sums / lengths, joint.target_temperature, joint.direction
        )  # fmt: skip
    else:
        retriever_loss = objectives.emdr2(log_p, sums)
    gold = torch.tensor([[row in asked.gold for row in pool] for asked in batch], device=queries.device)
    kept = contrast(queries @ passages.T / joint.temperature, gold)
    total = retriever_loss + joint.contrastive * kept
    if not torch.isfinite(total) or not np.isfinite(generator_loss):
        names = ", ".join(asked.query.id for asked in batch)
        raise RagbenchError(
            f"The loss of joint training was no number, on the questions {names}. Lower end_to_end_*_learning_rate, or "
            "train in float32 (dtype)."
        )
    total.backward()
    norms = {
        part: float(torch.nn.utils.clip_grad_norm_([w for n, w in models.trained().items() if n.startswith(part)],
                                                   MAX_NORM))
        for part in ("retriever", "generator")
    }  # fmt: skip
    optimizer.step()
    return {
        "loss": float(retriever_loss.detach()),
        "contrastive": float(kept.detach()),
        "generator_loss": generator_loss,
        "retriever_norm": norms["retriever"],
        "generator_norm": norms["generator"],
        "retriever_entropy": objectives.entropy(log_p.detach()),
        "generator_entropy": objectives.entropy(objectives.target_log_probs(sums / lengths, joint.target_temperature)),
    }


def _candidates(session: Session, queries: Tensor) -> np.ndarray:
    """Return the corpus rows of the K best passages of each question, best first, by embeddings as they are now."""
    joint = session.joint
    both = session.models.both_sides
    depth = max(joint.passages, joint.over_retrieve) if both else joint.passages
    found = search(session.index, queries.cpu().numpy(), depth)[1]
    if not both:
        return found
    pool = sorted({int(row) for row in found.flat})
    with torch.no_grad(), session.models.autocast():
        fresh = embed_texts(session.models.passages, texts_of(session.texts, pool), "document")
    scores = (queries[:, None] * fresh[torch.from_numpy(np.searchsorted(pool, found))]).sum(dim=-1).cpu().numpy()
    order = np.argsort(-scores, axis=1, kind="stable")[:, : joint.passages]
    return np.take_along_axis(found, order, axis=1)


def _embedded(session: Session, rows: Sequence[int]) -> Tensor:
    """Return the embeddings of some passages: fresh ones with gradients, or the index's where they never move."""
    models = session.models
    if not models.both_sides:
        return torch.from_numpy(session.vectors[list(rows)]).to(models.queries.device)
    with models.autocast():
        return embed_texts(models.passages, texts_of(session.texts, rows), "document")


def _teach_generator(session: Session, batch: Sequence[Asked], rows: np.ndarray, log_p: Tensor) -> tuple[float, Tensor]:
    """Leave the generator's gradients; return its loss, and the answers' log-likelihoods given each passage alone."""
    joint = session.joint
    if joint.train_generator and joint.objective == "rag_sequence":
        return _teach_by_marginal(session, batch, rows, log_p)
    sums = _likelihoods(session, batch, rows)
    return _teach_by_answers(session, batch, rows) if joint.train_generator else 0.0, sums


def _teach_by_marginal(
    session: Session, batch: Sequence[Asked], rows: np.ndarray, log_p: Tensor
) -> tuple[float, Tensor]:
    """A passage's gradient is that of its log-likelihood, times its share in the marginal.

    So all passages are read without gradients first, and once more with them only those whose share is more than
    rounding takes away.
    """
    models = session.models
    sums = _likelihoods(session, batch, rows)
    shares = torch.softmax(log_p + sums, dim=-1)
    for number, asked in enumerate(batch):
        counts = (shares[number] > models.rounding).cpu().numpy()
        with models.autocast():
            values = answer_log_likelihoods(models.generator, session.prompter.alone(asked, rows[number][counts]))
        (-(shares[number][counts] * values).sum() / len(batch)).backward()
    return float(objectives.rag_sequence(log_p, sums)), sums


def _teach_by_answers(session: Session, batch: Sequence[Asked], rows: np.ndarray) -> float:
    """The answers' mean loss a token, given a question's passages together as they are in use."""
    shown = [session.prompter.together(asked, rows[number]) for number, asked in enumerate(batch)]
    tokens = sum(len(row.answer) for row in shown)
    loss = 0.0
    for row in shown:
        with session.models.autocast():
            part = -answer_log_likelihoods(session.models.generator, [row]).sum() / tokens
        part.backward()
        loss += float(part.detach())
    return loss


@torch.no_grad()
def _likelihoods(session: Session, batch: Sequence[Asked], rows: np.ndarray) -> Tensor:
    """Return the answers' log-likelihoods given each passage alone; what is known is not computed again."""
    known = session.likelihoods if not session.joint.train_generator else {}
    missing = [
        (asked, int(row)) for asked, line in zip(batch, rows, strict=True) for row in line
        if (asked.query.id, int(row)) not in known
    ]  # fmt: skip
    prompts = [prompt for asked, row in missing for prompt in session.prompter.alone(asked, [row])]
    fresh: dict[tuple[str, int], float] = {}
    if prompts:
        with session.models.autocast():
            values = answer_log_likelihoods(session.models.generator, prompts)
        keys = [(asked.query.id, row) for asked, row in missing]
        fresh = dict(zip(keys, values.tolist(), strict=True))
        if not session.joint.train_generator:
            session.likelihoods |= fresh
    every = known | fresh
    return torch.tensor(
        [[every[asked.query.id, int(row)] for row in line] for asked, line in zip(batch, rows, strict=True)],
        device=session.models.queries.device,
    )


def _answer_lengths(session: Session, batch: Sequence[Asked]) -> Tensor:
    for asked in batch:
        if asked.query.id not in session.lengths:
            session.lengths[asked.query.id] = len(session.prompter.alone(asked, asked.gold[:1])[0].answer)
    return torch.tensor([session.lengths[asked.query.id] for asked in batch], device=session.models.queries.device)


@torch.no_grad()
def look(session: Session, dev: Sequence[Asked], step: int) -> Look:
    """Measure dev with the models as they are; where both sides learn, after the index has been made anew."""
    joint, models = session.joint, session.models
    with models.autocast():
        queries = embed_texts(models.queries, [asked.query.text for asked in dev], "query")
    asked_for = queries.cpu().numpy()
    stale = search(session.index, asked_for, joint.passages)[1]
    if models.both_sides and step:
        refresh(session)
    scores, rows = search(session.index, asked_for, joint.passages)
    log_p = objectives.passage_log_probs(torch.from_numpy(scores).to(queries.device), joint.temperature)
    sums = _likelihoods(session, dev, rows)
    lengths = _answer_lengths(session, dev)
    others = _likelihoods(session, dev, np.roll(rows[:, :1], -1, axis=0))[:, 0]
    target = objectives.target_log_probs(sums / lengths[:, None], joint.target_temperature)
    cosines = asked_for @ asked_for.T
    n = len(dev)
    return Look(
        step=step,
        loss=float((-torch.logsumexp(log_p + sums, dim=-1) / lengths).mean()),
        recall=float(np.mean([bool(set(asked.gold) & set(line)) for asked, line in zip(dev, rows, strict=True)])),
        distinct=len(set(rows[:, 0])) / n,
        cosine=float((cosines.sum() - np.trace(cosines)) / max(1, n * (n - 1))),
        own=float((sums[:, 0] / lengths).mean()),
        shuffled=float((others / lengths).mean()),
        retriever_entropy=objectives.entropy(log_p),
        generator_entropy=objectives.entropy(target),
        fresh=float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(stale, rows, strict=True)])),
    )
