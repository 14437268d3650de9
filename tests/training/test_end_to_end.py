import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from planted_vocabulary import WORDS
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM

from ragbench.collection.schema import Collection, Query, corpus_from_rows, passage_texts
from ragbench.errors import RagbenchError
from ragbench.generation.generate import Generator
from ragbench.generation.prompts import REFUSAL
from ragbench.retrieval.encoder import encode, open_encoder
from ragbench.retrieval.index import build_index, search
from ragbench.retrieval.retrieve import Retriever, retrieve
from ragbench.training import end_to_end, joint_session
from ragbench.training.contrast import contrast
from ragbench.training.end_to_end import _batch, _groups, _session, train_jointly
from ragbench.training.joint_models import Models, embed_texts, open_models
from ragbench.training.joint_questions import asked_of
from ragbench.training.joint_session import Joint, refresh, take_step
from ragbench.training.objectives import passage_log_probs

N = 24
JOINT = Joint(passages=3, over_retrieve=6, questions=4, steps=4, look_every=2, dev_questions=0, rank=4)
FAST = {"retriever_learning_rate": 1e-3, "generator_learning_rate": 1e-3}


@pytest.fixture(scope="module")
def collection():
    corpus = corpus_from_rows((f"p{n}", "", f"{WORDS[n]} {WORDS[n + 40]} {WORDS[n % 5]}", f"d{n}") for n in range(N))
    queries = {f"q{n}": Query(f"q{n}", f"{WORDS[n + 40]} {WORDS[n]}", f"{WORDS[n]} [p{n}]") for n in range(N)}
    queries["none"] = Query("none", WORDS[80], REFUSAL, tags=("unanswerable",))
    queries["silent"] = Query("silent", WORDS[3])
    qrels = {
        "train": {f"q{n}": {f"p{n}": 1} for n in range(16)} | {"none": {}, "silent": {"p3": 1}},
        "dev": {f"q{n}": {f"p{n}": 1} for n in range(16, 20)},
        "test": {f"q{n}": {f"p{n}": 1} for n in range(20, N)},
    }
    return Collection("planted", corpus, queries, qrels)


@pytest.fixture(scope="module")
def parts(tiny_encoder, tiny_generator):
    settings = {"device": "cpu", "dtype": "float32"}
    return (
        Retriever(model=str(tiny_encoder), max_tokens=32, depth=10, **settings),
        Generator(model=str(tiny_generator), contexts=2, max_context_tokens=60, max_new_tokens=6, **settings),
    )


def opened(collection, parts, joint, seed=0):
    models = open_models(*parts, sides=joint.sides, train_generator=joint.train_generator, rank=joint.rank, seed=seed)
    session = _session(collection, *parts, joint, models)
    return session, asked_of(collection, "train"), torch.optim.AdamW(_groups(models, joint), weight_decay=0.0)


def weights(module):
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def moved(module, before):
    return [name for name, weight in module.named_parameters() if not torch.equal(weight, before[name])]


# What is asked


def test_only_questions_with_an_answer_and_gold_passages_are_learned_from(collection):
    asked = asked_of(collection, "train")
    assert [each.query.id for each in asked] == [f"q{n}" for n in range(16)]
    assert asked[3].gold == (3,) and asked[3].needs == (frozenset({3}),)
    assert [each.query.id for each in asked_of(collection, "train", 4)] == ["q0", "q4", "q8", "q12"]


def test_a_collection_without_such_questions_says_what_is_missing(collection):
    bare = replace(collection, qrels=collection.qrels | {"dev": {"silent": {"p3": 1}}})
    with pytest.raises(RagbenchError, match="'dev' that have both an answer and gold passages"):
        asked_of(bare, "dev")


def test_every_epoch_asks_each_question_once_in_an_order_of_its_own(collection):
    asked = asked_of(collection, "train")
    epochs = [
        [each.query.id for step in range(4) for each in _batch(asked, 4, 4 * epoch + step, 7)] for epoch in (0, 1)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(each.query.id for each in asked)
    assert epochs[0] != epochs[1]


def test_a_passage_alone_and_those_shown_together_are_what_answering_shows(collection, parts):
    session, asked, _ = opened(collection, parts, JOINT)
    decode = session.models.tokenizer.decode
    [first, second] = session.prompter.alone(asked[3], [3, 7])
    assert "[p3]" in decode(first.prompt).replace(" ", "") and "[p7]" in decode(second.prompt).replace(" ", "")
    assert first.answer == second.answer
    for retrieved, shown in (([7, 3, 9], {"p7", "p3"}), ([7, 9, 3], {"p7", "p3"}), ([3, 7, 9], {"p7", "p3"})):
        together = session.prompter.together(asked[3], retrieved)
        assert together.answer == first.answer
        prompt = decode(together.prompt).replace(" ", "")
        assert {name for name in ("p3", "p7", "p9") if f"[{name}]" in prompt} == shown
    assert session.prompter.together(asked[3], [7, 9, 3]) == session.prompter.together(asked[3], [7, 3, 9])


# One step


@pytest.mark.parametrize("objective", ["distillation", "rag_sequence", "emdr2"])
@pytest.mark.parametrize("sides", ["query", "both"])
def test_one_step_moves_what_learns_and_nothing_else(collection, parts, objective, sides):
    session, asked, optimizer = opened(collection, parts, replace(JOINT, objective=objective, sides=sides))
    models = session.models
    before = [weights(part) for part in (models.queries, models.passages, models.generator)]
    take_step(session, asked[:4], optimizer)
    assert len(moved(models.queries, before[0])) > 10
    assert bool(moved(models.passages, before[1])) is (sides == "both")
    changed = moved(models.generator, before[2])
    assert changed and all("lora_" in name for name in changed)


def test_a_frozen_generator_is_asked_once_for_each_passage(collection, parts, monkeypatch):
    session, asked, optimizer = opened(collection, parts, replace(JOINT, train_generator=False))
    before, prompts = weights(session.models.generator), []
    whole = joint_session.answer_log_likelihoods
    monkeypatch.setattr(
        joint_session, "answer_log_likelihoods", lambda net, rows: prompts.append(len(rows)) or whole(net, rows)
    )
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # so the same passages are retrieved again
    for _ in range(2):
        take_step(session, asked[:4], optimizer)
    assert prompts == [4 * JOINT.passages]
    assert moved(session.models.generator, before) == []


def naive_loss(session, batch, rows):
    """The loss of the whole batch in one graph: every passage and answer in its own forward pass."""
    joint, models = session.joint, session.models
    queries = torch.cat([embed_texts(models.queries, [asked.query.text], "query") for asked in batch])
    pool = sorted({int(row) for row in rows.flat} | {row for asked in batch for row in asked.gold})
    passages = torch.cat([embed_texts(models.passages, [session.texts[row].as_py()], "document") for row in pool])
    total = 0.0
    for query, asked, line in zip(queries, batch, rows, strict=True):
        similarities = torch.stack([query @ passages[pool.index(int(row))] for row in line])
        answers = []
        for row in session.prompter.alone(asked, line):
            ids = torch.tensor([[*row.prompt, *row.answer]])
            log_p = torch.log_softmax(models.generator(input_ids=ids).logits[0], dim=-1)
            answers.append(sum(log_p[len(row.prompt) + n - 1, token] for n, token in enumerate(row.answer)))
        total -= torch.logsumexp(passage_log_probs(similarities, joint.temperature) + torch.stack(answers), dim=0)
    gold = torch.tensor([[row in asked.gold for row in pool] for asked in batch])
    return total / len(batch) + joint.contrastive * contrast(queries @ passages.T / joint.temperature, gold)


@pytest.mark.parametrize("sides", ["query", "both"])
def test_gradients_computed_in_parts_are_those_of_the_whole_marginal_likelihood(collection, parts, monkeypatch, sides):
    monkeypatch.setattr(joint_session, "MAX_NORM", 1e9)
    session, asked, optimizer = opened(collection, parts, replace(JOINT, objective="rag_sequence", sides=sides))
    with torch.no_grad():  # a fresh adapter changes nothing, and half of it has no gradient
        for name, weight in session.models.generator.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    batch = asked[:3]
    queries = embed_texts(session.models.queries, [each.query.text for each in batch], "query").detach()
    rows = joint_session._candidates(session, queries)
    loss = naive_loss(session, batch, rows)
    named = session.models.trained()
    expected = dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    take_step(session, batch, optimizer)
    for name, weight in named.items():
        if expected[name] is not None:
            assert torch.allclose(weight.grad, expected[name], atol=2e-4), name
    assert sum(gradient is not None and bool(gradient.any()) for gradient in expected.values()) > 20


def test_passages_that_do_not_count_are_read_without_gradients_only(collection, parts, monkeypatch):
    monkeypatch.setattr(Models, "rounding", 0.3)  # of three shares one at least is above it
    session, asked, optimizer = opened(collection, parts, replace(JOINT, objective="rag_sequence"))
    whole, read = joint_session.answer_log_likelihoods, []
    monkeypatch.setattr(
        joint_session,
        "answer_log_likelihoods",
        lambda network, rows: read.append((torch.is_grad_enabled(), len(rows))) or whole(network, rows),
    )
    take_step(session, asked[:4], optimizer)
    assert read[0] == (False, 4 * JOINT.passages)
    assert all(graded for graded, _ in read[1:]) and 4 <= sum(count for _, count in read[1:]) < 12


def test_the_retrievers_gradient_agrees_with_finite_differences(collection, parts):
    joint = replace(JOINT, objective="rag_sequence", contrastive=0.0, temperature=1.0)
    session, asked, _ = opened(collection, parts, joint)
    batch, rows = asked[:2], np.array([[0, 1, 2], [3, 1, 4]])
    named = list(session.models.queries.parameters())
    gradients = torch.autograd.grad(naive_loss(session, batch, rows), named, allow_unused=True)
    weight, gradient = max(
        ((w, g) for w, g in zip(named, gradients, strict=True) if g is not None), key=lambda pair: pair[1].abs().max()
    )
    place = np.unravel_index(int(gradient.abs().argmax()), gradient.shape)
    losses = []
    for change in (2e-2, -4e-2):
        with torch.no_grad():
            weight[place] += change
            losses.append(float(naive_loss(session, batch, rows)))
    assert (losses[0] - losses[1]) / 4e-2 == pytest.approx(float(gradient[place]), rel=0.05)


def test_scores_come_from_fresh_embeddings_and_never_from_the_index(collection, parts):
    session, asked, optimizer = opened(collection, parts, replace(JOINT, sides="both", over_retrieve=N))
    spoilt, _, other = opened(collection, parts, replace(JOINT, sides="both", over_retrieve=N))
    spoilt.vectors = spoilt.vectors[::-1].copy()
    spoilt.index = build_index(spoilt.vectors)
    found = [take_step(each, asked[:4], by) for each, by in ((session, optimizer), (spoilt, other))]
    assert found[0] == pytest.approx(found[1])  # all passages were over-retrieved, so the index decided nothing


def test_a_new_index_changes_what_is_retrieved(collection, parts):
    session, asked, optimizer = opened(collection, parts, replace(JOINT, sides="both", **FAST))
    for step in range(6):
        take_step(session, _batch(asked, 4, step, 0), optimizer)
    with torch.no_grad():
        queries = embed_texts(session.models.queries, [each.query.text for each in asked], "query").numpy()
    stale = search(session.index, queries, 5)[1]
    refresh(session)
    assert (stale != search(session.index, queries, 5)[1]).any()


def test_a_loss_that_is_no_number_names_the_questions(collection, parts):
    session, asked, optimizer = opened(collection, parts, JOINT)
    with torch.no_grad():
        next(iter(session.models.generator.parameters())).fill_(float("nan"))
    with pytest.raises(RagbenchError, match=r"no number, on the questions q0, q1"):
        take_step(session, asked[:2], optimizer)


# A whole training


@pytest.fixture(scope="module")
def trained(collection, parts, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAGBENCH_CACHE", str(tmp_path_factory.mktemp("joint")))
        seen, drawn = [], []
        step = end_to_end.take_step
        patch.setattr(
            end_to_end, "take_step", lambda session, batch, *rest: seen.extend(batch) or step(session, batch, *rest)
        )
        joint = replace(JOINT, **FAST, steps=12, look_every=4)
        found = train_jointly(collection, *parts, joint, seed=3, watch=lambda log, looks: drawn.append(len(looks)))
        yield found, {each.query.id for each in seen}, drawn


def test_nothing_but_train_questions_is_learned_from(trained, collection):
    assert trained[1] <= set(collection.qrels["train"])


def test_training_lowers_the_loss_on_dev_and_says_so(trained):
    found, _, drawn = trained
    assert [look.step for look in found.looks] == [0, 4, 8, 12] and len(found.log) == 12
    assert found.best_step > 0 and found.stopped is None and found.seconds > 0
    assert min(look.loss for look in found.looks) < found.looks[0].loss
    assert {guard.name: guard.holds for guard in found.guards} == {
        "dev improved": True, "retriever: parameters moved": True, "generator: parameters moved": True,
        "gradients flowed": True, "passages' encoder stayed": True,
    }  # fmt: skip
    assert drawn == [2, 3, 4, 4]


def test_the_retriever_routes_questions_to_what_learned_and_passages_to_what_stayed(trained, parts, collection):
    model = SentenceTransformer(str(trained[0].retriever), device="cpu", local_files_only=True)
    start = SentenceTransformer(parts[0].model, device="cpu", local_files_only=True)
    texts = ["bab bed", "big bod bid"]
    assert np.allclose(model.encode_document(texts), start.encode(texts), atol=1e-6)
    assert not np.allclose(model.encode_query(texts), start.encode(texts), atol=1e-3)
    queries = [collection.queries["q0"]]
    found, before = (
        retrieve(collection, queries, r)["q0"] for r in (replace(parts[0], model=str(trained[0].retriever)), parts[0])
    )
    assert found != before and set(found) <= {f"p{n}" for n in range(N)}


def test_passages_whose_encoder_stayed_are_not_encoded_again(trained, parts, collection, monkeypatch):
    encoders = [
        open_encoder(m, max_tokens=32, device="cpu", dtype="float32")
        for m in (str(trained[0].retriever), parts[0].model)
    ]
    monkeypatch.setenv("RAGBENCH_CACHE", str(trained[0].retriever.parents[2]))
    monkeypatch.setattr("ragbench.retrieval.encoder._forward", lambda *_: pytest.fail("it was"))
    found, start = (encode(encoder, passage_texts(collection), "passage") for encoder in encoders)
    assert (found == start).all()


def test_the_generators_adapter_opens_and_names_its_base_as_it_was_asked_for(trained, parts):
    config = json.loads((trained[0].generator / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == parts[1].model
    opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(parts[1].model), trained[0].generator)
    assert any(bool(weight.any()) for name, weight in opened.named_parameters() if "lora_B" in name)


def test_a_killed_training_goes_on_from_its_last_look_and_ends_the_same(
    trained, collection, parts, own_cache, monkeypatch
):
    joint = replace(JOINT, **FAST, steps=12, look_every=4)
    step, taken = end_to_end.take_step, []

    def breaks(session, batch, optimizer):
        taken.append(batch)
        if len(taken) == 7:
            raise KeyboardInterrupt
        return step(session, batch, optimizer)

    monkeypatch.setattr(end_to_end, "take_step", breaks)
    with pytest.raises(KeyboardInterrupt):
        train_jointly(collection, *parts, joint, seed=3)
    found = train_jointly(collection, *parts, joint, seed=3)
    assert len(taken) == 7 + 8  # steps 5 to 12 again
    assert [look.loss for look in found.looks] == pytest.approx([look.loss for look in trained[0].looks], abs=1e-6)
    assert found.log["loss"].tolist() == pytest.approx(trained[0].log["loss"].tolist(), abs=1e-6)
    train_jointly(collection, *parts, joint, seed=3)
    assert len(taken) == 15  # a finished one is not done again


def test_a_retriever_that_falls_apart_is_stopped_and_its_start_kept(collection, parts, own_cache):
    found = train_jointly(
        collection, *parts, replace(JOINT, steps=40, look_every=5, retriever_learning_rate=3.0, contrastive=0.0,
                                    train_generator=False), seed=1
    )  # fmt: skip
    assert found.stopped is not None and len(found.log) < 40
    assert found.generator is None
    if found.best_step == 0:
        assert not found.guards[0].holds


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": "dpo"}, "end_to_end_objective 'dpo' is unknown; use distillation, rag_sequence, emdr2"),
        ({"sides": "none"}, "end_to_end_sides 'none'"),
        ({"direction": "up"}, "end_to_end_direction 'up'"),
        ({"passages": 1}, "end_to_end_passages must be at least 2, found 1"),
        ({"steps": 0}, "end_to_end_steps must be at least 1"),
    ],
)
def test_an_impossible_setting_is_named(collection, parts, changes, said):
    with pytest.raises(RagbenchError, match=said):
        train_jointly(collection, *parts, replace(JOINT, **changes))


def test_a_served_generator_cannot_be_trained_with(collection, parts):
    with pytest.raises(RagbenchError, match="generator_backend to local"):
        train_jointly(collection, parts[0], replace(parts[1], backend="endpoint"), JOINT)
