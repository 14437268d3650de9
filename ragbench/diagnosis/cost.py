"""What tuning would cost: compute, device by device, labels, and every query afterwards. Every assumption is a field.

Training time on this machine comes from measured tokens a second. For another device it is the arithmetic over its
usable speed: a full training step takes about 6 floating-point operations a parameter and token, 2 forward and 4 back
(Kaplan et al. 2020); with the weights frozen, as in LoRA, the gradients of the weights fall away, which leaves 4; QLoRA
unpacks its 4-bit weights on the way.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pandas as pd

from ragbench.collection.schema import Collection, passage_texts
from ragbench.diagnosis.counterfactual import Trial
from ragbench.diagnosis.throughput import Throughput, measure_throughput
from ragbench.errors import RagbenchError
from ragbench.generation.generate import Generator, token_counter
from ragbench.generation.prompts import TokenCount
from ragbench.retrieval.encoder import Encoder, open_encoder, parameter_count, token_counts
from ragbench.retrieval.retrieve import Retriever

OPERATIONS = {"full": 6.0, "LoRA": 4.0, "QLoRA": 4.0}
THIS_MACHINE = "this machine"


@dataclass(frozen=True)
class Assumptions:
    """What cannot be measured here, and is assumed.

    Attributes:
        devices: name → [peak bfloat16 TFLOP/s, price an hour]; for `THIS_MACHINE` the speed is measured and its first
            number is not used.
        utilisation: share of the peak that training reaches.
        setup_hours: to start another device and bring model and data there; paid like work.
        qlora_slowdown: how much longer QLoRA takes than LoRA (Dettmers et al. 2023 and its users report 1.3 to 1.4).
        epochs: passes over the data.
        labels_wanted: answered questions with gold passages that tuning should have.
        minutes_per_label, price_per_hour: of a person who writes one.
        price_input, price_output: of a served generator, a million tokens.
    """

    devices: dict[str, list[float]] = field(default_factory=lambda: {THIS_MACHINE: [0.0, 0.1]})
    utilisation: float = 0.2
    setup_hours: float = 0.2
    qlora_slowdown: float = 1.35
    epochs: float = 3.0
    labels_wanted: int = 500
    minutes_per_label: float = 5.0
    price_per_hour: float = 40.0
    price_input: float = 0.0
    price_output: float = 0.0


@dataclass(frozen=True)
class Workload:
    """What the run measured of the system and its data.

    Attributes:
        labels: train questions that have a reference and gold passages.
        prompt_tokens, answer_tokens, reference_tokens: means over the answered questions.
        seconds: mean time of an answer.
        retriever_parameters, passage_tokens: of the bi-encoder; the tokens of one question with its positive and hard
            negatives.
    """

    labels: int
    prompt_tokens: float
    answer_tokens: float
    reference_tokens: float
    seconds: float
    retriever_parameters: int
    passage_tokens: float


NEGATIVES = 4
"""Hard negatives beside each positive that the retriever is taken to train with."""
_SAMPLE = 200


def workload(
    collection: Collection, trial: Trial, retriever: Encoder, count_tokens: TokenCount, train: str = "train"
) -> Workload:
    """Measure what the costs depend on.

    Args:
        retriever: the bi-encoder that would be tuned.
        count_tokens: of the generator, see `local.token_counter` and `endpoint.count_tokens`.
        train: the split that training would learn from.
    """
    queries = collection.queries
    gold = [
        name for name, found in collection.qrels.get(train, {}).items() if any(score > 0 for score in found.values())
    ]
    answers = [a for a in trial.answers.get("retrieved", {}).values() if a.finish_reason != "error"]
    references = [count_tokens(query.answer) for query in queries.values() if query.answer]
    rows = np.linspace(0, len(collection.corpus) - 1, min(_SAMPLE, len(collection.corpus))).astype(int)
    passage = token_counts(retriever, passage_texts(collection, rows).to_pylist()).mean()
    question = token_counts(retriever, [query.text for query in queries.values()]).mean()
    return Workload(
        sum(queries[name].answer is not None for name in gold),
        _mean([answer.prompt_tokens for answer in answers]),
        _mean([answer.completion_tokens for answer in answers]),
        _mean(references),
        _mean([answer.seconds for answer in answers]),
        parameter_count(retriever),
        float(question + (1 + NEGATIVES) * passage),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def tuning_cost(table: pd.DataFrame, choice: str, label_cost: float) -> float:
    """Return what a choice costs once: the cheapest device and method for each part it trains, and the labels;
    NaN if a part's cost is not known."""
    parts = {"retriever": ["retriever"], "generator": ["generator"]}.get(choice, ["retriever", "generator"])
    cheapest = [table.loc[table["component"] == part, "cost"].min() for part in parts]
    return float(np.sum(cheapest)) + label_cost


def training_table(work: Workload, speed: Throughput | None, assumed: Assumptions) -> pd.DataFrame:
    """Return columns component, method, device, hours, cost, basis, for `labels_wanted` examples or those there are.

    Without a local generator (`speed` is None) only the retriever can be projected, and not for this machine.

    Raises:
        RagbenchError: a device whose peak is not above 0.
    """
    for device, (peak, _) in assumed.devices.items():
        if device != THIS_MACHINE and peak <= 0:
            raise RagbenchError(f"cost_devices: '{device}' needs its peak in TFLOP/s, above 0; found {peak}.")
    examples = max(work.labels, assumed.labels_wanted)
    tokens = examples * assumed.epochs * (work.prompt_tokens + work.reference_tokens)
    pairs = examples * assumed.epochs * work.passage_tokens
    rows = []
    for device, (peak, price) in assumed.devices.items():
        jobs = [("retriever", "full", pairs, work.retriever_parameters)]
        if speed is not None:
            jobs += [("generator", method, tokens, speed.parameters) for method in ("LoRA", "QLoRA", "full")]
        for component, method, count, parameters in jobs:
            seconds, basis = _seconds(method, count, parameters, component, device, peak, speed, assumed)
            hours = None if seconds is None else seconds / 3600
            rows.append((component, method, device, hours, None if hours is None else hours * price, basis))
    columns = ["component", "method", "device", "hours", "cost", "basis"]
    return pd.DataFrame(rows, columns=columns).astype({"hours": float, "cost": float})


def _seconds(
    method: str,
    tokens: float,
    parameters: int,
    component: str,
    device: str,
    peak: float,
    speed: Throughput | None,
    assumed: Assumptions,
) -> tuple[float | None, str]:
    slower = assumed.qlora_slowdown if method == "QLoRA" else 1.0
    if device != THIS_MACHINE:
        operations = OPERATIONS[method] * parameters * tokens
        seconds = slower * operations / (peak * 1e12 * assumed.utilisation)
        return seconds + 3600 * assumed.setup_hours, "operations over usable speed, and the set-up"
    if speed is None:
        return None, "nothing was measured here"
    if component == "retriever":
        # The same kind of network, smaller: speed goes with the number of parameters.
        if speed.full is None:
            return None, "full training of the generator does not fit this machine, so nothing was measured"
        return tokens * parameters / (speed.full * speed.parameters), "measured on the generator, scaled by size"
    if method == "full":
        return (None, "does not fit this machine") if speed.full is None else (tokens / speed.full, "measured")
    return slower * tokens / speed.lora, "measured" if method == "LoRA" else "measured for LoRA, times the slowdown"


@dataclass(frozen=True)
class Bill:
    """All costs of a system and its tuning, with what they rest on.

    Attributes:
        training, queries: see `training_table` and `query_costs`.
        assumptions: columns assumption, value: what was measured, and what was assumed.
        labels, label_hours, label_cost: see `labelling`.
        once: what tuning both parts and labelling cost, on the cheapest device.
    """

    training: pd.DataFrame
    queries: pd.DataFrame
    assumptions: pd.DataFrame
    labels: int
    label_hours: float
    label_cost: float
    once: float


def reckon(
    collection: Collection, trial: Trial, generator: Generator, retriever: Retriever, assumed: Assumptions
) -> Bill:
    """Reckon what tuning and answering cost; a local generator's speed is measured for it.

    Raises:
        RagbenchError: a model that cannot be had.
    """
    encoder = open_encoder(
        retriever.model,
        revision=retriever.revision,
        max_tokens=retriever.max_tokens,
        device=retriever.device,
        dtype=retriever.dtype,
    )
    work = workload(collection, trial, encoder, token_counter(generator))
    speed = None
    if generator.backend == "local":
        speed = measure_throughput(generator.model, generator.revision, generator.device, generator.dtype)
    training = training_table(work, speed, assumed)
    labels, hours, label_cost = labelling(work, assumed)
    known = [("measured: " + name.replace("_", " "), value) for name, value in asdict(work).items()]
    if speed is not None:
        known += [
            (f"measured: tokens a second, {name} ({speed.device}, {speed.dtype})", getattr(speed, name))
            for name in ("forward", "lora", "full")
        ]
    known += [("assumed: " + k.replace("_", " "), v) for k, v in asdict(assumed).items() if k != "devices"]
    known += [("to be labelled", labels), ("hours of labelling", hours), ("cost of labelling", label_cost)]
    return Bill(
        training,
        query_costs(work, assumed),
        pd.DataFrame(known, columns=["assumption", "value"]),
        labels,
        hours,
        label_cost,
        tuning_cost(training, "end_to_end", label_cost),
    )


def labelling(work: Workload, assumed: Assumptions) -> tuple[int, float, float]:
    """Return (questions still to be written, hours, cost)."""
    missing = max(0, assumed.labels_wanted - work.labels)
    hours = missing * assumed.minutes_per_label / 60
    return missing, hours, hours * assumed.price_per_hour


def query_costs(work: Workload, assumed: Assumptions) -> pd.DataFrame:
    """Return columns system, seconds, cost of a thousand queries: as it is, and with a tuned generator.

    A tuned retriever costs what an untuned one does. A tuned generator stops where the reference would, so its answers
    are taken to be as long as those, and time to go with the tokens read and written.
    """
    before = work.prompt_tokens + work.answer_tokens
    after = work.prompt_tokens + work.reference_tokens
    rows = [
        (name, seconds, 1000 * _query_cost(work.prompt_tokens, written, seconds, assumed))
        for name, written, seconds in (
            ("as it is", work.answer_tokens, work.seconds),
            ("with a tuned generator", work.reference_tokens, work.seconds * after / max(before, 1.0)),
        )
    ]
    return pd.DataFrame(rows, columns=["system", "seconds", "cost of 1000 queries"])


def _query_cost(read: float, written: float, seconds: float, assumed: Assumptions) -> float:
    if assumed.price_input or assumed.price_output:
        return (read * assumed.price_input + written * assumed.price_output) / 1e6
    return seconds / 3600 * assumed.devices.get(THIS_MACHINE, [0.0, float("nan")])[1]
