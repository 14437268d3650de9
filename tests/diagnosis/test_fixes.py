import json
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.diagnosis import fixes
from ragbench.diagnosis.counterfactual import Trial
from ragbench.diagnosis.decision import Criteria, decide
from ragbench.diagnosis.evidence import gather
from ragbench.diagnosis.fixes import cheap_settings, try_fixes
from ragbench.diagnosis.measures import correctness_of
from ragbench.evaluation.evaluate import System
from ragbench.generation.answers import Answer
from ragbench.generation.generate import Generator
from ragbench.retrieval.encoder import open_encoder
from ragbench.retrieval.retrieve import Retriever

NUMBERS = [
    "bab",
    "beg",
    "dik",
    "dol",
    "gum",
    "gal",
    "kep",
    "kin",
    "lob",
    "lus",
    "mad",
    "mer",
    "nip",
    "nor",
    "pus",
    "pat",
]
"""One word for each of up to 16 questions."""


@pytest.fixture
def encoder(tiny_encoder):
    return open_encoder(str(tiny_encoder), device="cpu", dtype="float32")


@pytest.fixture
def base(tiny_encoder, tiny_generator):
    """A dense retriever, two passages shown, and a local generator of random weights."""
    return System(
        "base",
        Retriever(model=str(tiny_encoder), device="cpu", dtype="float32"),
        Generator(
            model=str(tiny_generator),
            contexts=2,
            max_context_tokens=200,
            max_new_tokens=4,
            instruction="bab",
            device="cpu",
            dtype="float32",
        ),
    )


@pytest.fixture
def serve(base):
    """Return a function that turns `answer(prompt) -> text or None` into the system with that generator behind HTTP.

    None is a reply without an answer in it, which counts as failed.
    """
    servers = []

    def start(answer):
        def reply(handler):
            body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
            text = answer("\n".join(message["content"] for message in body["messages"]))
            choices = [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]
            sent = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": choices}
            data = json.dumps(sent if text is not None else sent | {"choices": []}).encode()
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)

        kind = type("Handler", (BaseHTTPRequestHandler,), {"do_POST": reply, "log_message": lambda *_: None})
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), kind))
        Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = f"http://127.0.0.1:{servers[-1].server_port}/v1"
        return replace(base, generator=replace(base.generator, backend="endpoint", model="m", endpoint=url))

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def reference(word):
    return f"It is {word} north."


def small_collection(splits, extra=()):
    """One passage and question a word: the question shares a rare word with its own passage only.

    Args:
        splits: split → how many questions; the names of those without gold passages end in `-none`.
        extra: more queries of the split `dev`, with their gold passages.
    """
    words = iter(NUMBERS)
    queries, qrels = {}, {}
    for split, count in splits.items():
        qrels[split] = {}
        for _ in range(count):
            word = next(words)
            unanswerable = split.endswith("-none")
            tags = ("unanswerable",) if unanswerable else ()
            queries[f"q-{word}"] = Query(f"q-{word}", f"where is {word} now?", reference(word), tags, split=split)
            qrels[split][f"q-{word}"] = {} if unanswerable else {f"p-{word}": 1}
    for query, gold in extra:
        queries[query.id] = query
        qrels["dev"][query.id] = gold
    corpus = corpus_from_rows((f"p-{word}", "", f"the {word} lies in the north", f"d-{word}") for word in NUMBERS)
    return Collection("small", corpus, queries, qrels)


def worst_run(collection):
    """Every passage but the needed ones first: two passages never show what is needed."""
    run = {}
    for gold in (entry for qrels in collection.qrels.values() for entry in qrels.items()):
        ids = sorted((f"p-{word}" for word in NUMBERS), key=lambda name, gold=gold[1]: (name in gold, name))
        run[gold[0]] = {name: -float(rank) for rank, name in enumerate(ids)}
    return run


def trial_of(collection, said=None, run=None):
    """A trial under the worst run; `said`: query id → text, or None for a system that was not asked."""
    questions = {split: [collection.queries[name] for name in qrels] for split, qrels in collection.qrels.items()}
    run = run or worst_run(collection)
    answers = {
        name: Answer(name, text, tuple(run[name])[:2], (), 10, 5, 0.1, "stop") for name, text in (said or {}).items()
    }
    return Trial(questions, run, 2, {"retrieved": answers} if answers else {})


def run_fixes(collection, system, trial, encoder, **options):
    """The evidence and what was tried, as the audit does it."""
    evidence = gather(collection, trial, correctness_of(collection, trial, encoder), encoder)
    return evidence, try_fixes(collection, system, trial, evidence, encoder, **options)


def ids_of(collection, split):
    return list(collection.qrels[split])


def row(fixes, name):
    return fixes.table.set_index("setting").loc[name]


def knows_when_shown(prompt):
    """A generator that is right if the passage that it needs is among those shown, and says nothing else."""
    word = prompt.split("where is ")[1].split(" now?")[0]
    return reference(word) if f"[p-{word}]" in prompt else ""


def unseen(n):
    """The upper end of Wilson's 95 % interval of a rate that was 0 in `n` questions."""
    return pytest.approx(1.96**2 / (n + 1.96**2), abs=1e-4)


def shows_one_passage_in_vain(prompt):
    word = prompt.split("where is ")[1].split(" now?")[0]
    return prompt.count("[p-") == 1 and f"[p-{word}]" not in prompt


# What is tried


@given(
    st.sampled_from(["dense", "bm25", "fusion"]),
    st.integers(1, 10),
    st.integers(1, 4096),
    st.sampled_from(["instruction_first", "instruction_last"]),
)
def test_each_setting_differs_from_the_system_in_just_what_it_says(method, contexts, tokens, order):
    base = System(
        "base", Retriever(method=method), Generator(contexts=contexts, max_context_tokens=tokens, order=order)
    )
    found = cheap_settings(base)
    assert len({setting.name for setting in found}) == len({str(setting.system) for setting in found}) == len(found)
    for setting in found:
        system = base
        for name, value in setting.changes.items():
            part, key = name.split("_", 1)
            key = {"prompt": "order"}.get(key, key)
            assert getattr(getattr(base, part), key) != value
            system = replace(system, **{part: replace(getattr(system, part), **{key: value})})
        assert setting.changes and setting.system == system


def test_the_other_retrieval_methods_more_and_fewer_passages_and_more_length_are_tried():
    changes = [setting.changes for setting in cheap_settings(System("base", Retriever(), Generator()))]
    for expected in (
        {"retriever_method": "bm25"},
        {"retriever_method": "fusion"},
        {"generator_contexts": 1},
        {"generator_contexts": 6, "generator_max_context_tokens": 1536},
        {"generator_max_context_tokens": 1536},
    ):
        assert expected in changes


def test_of_one_passage_no_fewer_are_tried():
    found = cheap_settings(System("base", Retriever(), Generator(contexts=1)))
    assert all(setting.changes.get("generator_contexts") != 1 for setting in found)


# Without answers


def test_without_answers_the_setting_that_shows_most_is_offered_and_nothing_is_answered(base, encoder, own_cache):
    collection = small_collection({"dev": 8, "train": 8})
    evidence, fixes = run_fixes(collection, base, trial_of(collection), encoder)
    assert fixes.best.changes == {"retriever_method": "bm25"}
    assert (fixes.gain, 1 - fixes.low, fixes.high, fixes.n, fixes.chosen_on) == (1.0, unseen(8), 1.0, 8, 8)
    assert fixes.table[["right", "correctness"]].isna().all(axis=None)
    assert not (own_cache / "answers").exists() and not (own_cache / "answers.sqlite").exists()
    assert row(fixes, "as it is")["shown"] == 0 and row(fixes, "bm25")["shown"] == 1
    decision = decide(evidence, (), fixes, Criteria())
    assert decision.choice == "settings" and decision.headline.startswith("Retrieval only")


def test_where_nothing_shows_more_no_setting_is_offered(base, encoder):
    collection = small_collection({"dev": 4, "train": 4})
    run = {name: {f"p-{name[2:]}": 1.0} for name in collection.queries}
    _, fixes = run_fixes(collection, base, trial_of(collection, run=run), encoder)
    assert fixes.best is None and fixes.n == 0 and np.isnan(fixes.gain)
    assert row(fixes, "as it is")["shown"] == 1


def test_a_passage_that_is_cut_is_not_shown_whole_and_twice_the_length_shows_it(base, encoder):
    collection = small_collection({"dev": 4, "train": 4})
    run = {name: {"p-pat": 2.0, f"p-{name[2:]}": 1.0} for name in collection.queries}
    short = replace(base, generator=replace(base.generator, max_context_tokens=40))
    _, fixes = run_fixes(collection, short, trial_of(collection, run=run), encoder)
    assert row(fixes, "as it is")["shown"] == 0
    assert row(fixes, "twice the length")["shown"] == 1 and row(fixes, "twice the length")["shown_gain"] == 1


def test_all_that_is_needed_must_be_shown(base, encoder):
    """A question that needs two passages is not served by one; of a group any one passage will do."""
    needs = (("p-pat",), ("p-pus", "p-nor"))
    two = Query("q-two", "where are pat and pus now?", "North.", ("multi",), needs)
    collection = small_collection({"dev": 0, "train": 0}, [(two, {"p-pat": 1, "p-pus": 1, "p-nor": 1})])
    for ranked, shown in ((["p-pat", "p-bab"], 0), (["p-nor", "p-pus"], 0), (["p-nor", "p-pat"], 1)):
        run = {"q-two": {name: -float(rank) for rank, name in enumerate(ranked)}}
        _, fixes = run_fixes(collection, base, trial_of(collection, run=run), encoder)
        assert row(fixes, "as it is")["shown"] == shown
        assert row(fixes, "one passage")["shown"] == 0


@pytest.mark.parametrize("splits", [{"dev": 1}, {"dev-none": 3}, {"dev": 1, "dev-none": 2}])
def test_hardly_any_questions_give_no_gain_rather_than_a_wrong_one(base, encoder, splits):
    collection = small_collection(splits)
    _, fixes = run_fixes(collection, base, trial_of(collection), encoder)
    assert fixes.n == 0 and np.isnan(fixes.gain) and np.isnan(fixes.low)
    assert fixes.chosen_on == splits.get("dev", 0)


# The choice and its gain


def test_the_setting_that_answers_best_is_chosen_on_dev_and_confirmed_on_the_rest(serve, encoder):
    collection = small_collection({"dev": 8, "train": 8})
    trial = trial_of(collection, dict.fromkeys(collection.queries, ""))
    _, fixes = run_fixes(collection, serve(knows_when_shown), trial, encoder)
    assert fixes.best.changes == {"retriever_method": "bm25"}
    assert (fixes.gain, 1 - fixes.low, fixes.high, fixes.n, fixes.chosen_on) == (1, unseen(8), 1, 8, 8)
    assert row(fixes, "as it is")[["right", "correctness"]].tolist() == [0, 0]
    assert row(fixes, "bm25")["right"] == 1 and 0.9 < row(fixes, "bm25")["correctness"] < 1


def test_the_choice_never_sees_the_questions_on_which_its_gain_is_reported(serve, encoder):
    """On dev bm25 is right and the system wrong; on the rest it is the other way round, or not, or not ranked well."""
    collection = small_collection({"dev": 8, "train": 8})
    train = ids_of(collection, "train")

    def right_on_dev(prompt):
        text = knows_when_shown(prompt)
        return "" if any(f"where is {name[2:]} now?" in prompt for name in train) else text

    wrong = dict.fromkeys(collection.queries, "")
    good = wrong | {name: reference(name[2:]) for name in train}
    found = worst_run(collection) | {name: {f"p-{name[2:]}": 1.0} for name in train}
    system = serve(right_on_dev)
    fixes = [
        run_fixes(collection, system, trial_of(collection, said, run), encoder)[1]
        for said, run in ((wrong, None), (good, None), (good, found))
    ]
    assert {f.best.name for f in fixes} == {"bm25"}
    chosen = ["setting", "shown", "right", "correctness"]
    for f in fixes[1:]:
        assert f.table[chosen].equals(fixes[0].table[chosen])
    assert fixes[0].gain == 0
    assert fixes[1].gain == fixes[1].low == -1 and fixes[1].high + 1 == unseen(8)
    assert row(fixes[1], "bm25")["shown_gain"] == 1 and row(fixes[2], "bm25")["shown_gain"] == 0


def test_dev_decides_alone(serve, encoder):
    """A system that is right on dev is kept, however wrong it is on the rest."""
    collection = small_collection({"dev": 8, "train": 8})
    said = dict.fromkeys(collection.queries, "") | {name: reference(name[2:]) for name in ids_of(collection, "dev")}
    _, fixes = run_fixes(collection, serve(knows_when_shown), trial_of(collection, said), encoder)
    assert fixes.best is None and fixes.chosen_on == 8


def test_a_collection_with_one_split_chooses_on_one_half_and_reports_on_the_other(serve, encoder):
    collection = small_collection({"dev": 11})
    trial = trial_of(collection, dict.fromkeys(collection.queries, ""))
    _, fixes = run_fixes(collection, serve(knows_when_shown), trial, encoder)
    assert (fixes.chosen_on, fixes.n) == (6, 5) and fixes.gain > 0.9


def test_a_first_split_without_gold_passages_cannot_choose(serve, encoder):
    collection = small_collection({"dev-none": 3, "train": 6, "more": 6})
    trial = trial_of(collection, dict.fromkeys(collection.queries, ""))
    _, fixes = run_fixes(collection, serve(knows_when_shown), trial, encoder)
    assert fixes.chosen_on > 0 and fixes.best is not None and fixes.best.name == "bm25"


def test_questions_that_were_not_answered_cannot_choose_among_answers(serve, encoder):
    """Only a sample of the questions is answered; here it holds none of dev."""
    collection = small_collection({"dev": 6, "train": 10})
    trial = trial_of(collection, dict.fromkeys(ids_of(collection, "train"), ""))
    _, fixes = run_fixes(collection, serve(knows_when_shown), trial, encoder)
    assert fixes.best is not None and fixes.n > 0 and fixes.gain > 0.9


def test_no_more_settings_are_answered_than_allowed(serve, encoder):
    collection = small_collection({"dev": 4, "train": 4})
    trial = trial_of(collection, dict.fromkeys(collection.queries, ""))
    for allowed in (0, 1, 2):
        _, fixes = run_fixes(collection, serve(knows_when_shown), trial, encoder, answered=allowed)
        assert fixes.table["right"].notna().sum() == 1 + allowed


def test_the_same_trial_gives_the_same_fixes(base, encoder, monkeypatch, tmp_path):
    collection = small_collection({"dev": 5, "train": 5})
    trial = trial_of(collection, dict.fromkeys(collection.queries, ""))
    first = run_fixes(collection, base, trial, encoder, seed=4)[1]
    monkeypatch.setenv("RAGBENCH_CACHE", str(tmp_path / "another"))
    second = run_fixes(collection, base, trial, encoder, seed=4)[1]
    assert first.table.equals(second.table) and first.best == second.best
    assert np.array_equal([first.gain, first.low, first.high], [second.gain, second.low, second.high], equal_nan=True)


# Odd systems


def test_answers_that_failed_are_missing_not_wrong(serve, encoder):
    """Three questions of eight get no answer under a setting: those do not count against it."""
    collection = small_collection({"dev": 8, "train": 8})
    failing = {name[2:] for split in ("dev", "train") for name in ids_of(collection, split)[::3]}

    def flaky(prompt):
        word = prompt.split("where is ")[1].split(" now?")[0]
        return None if word in failing else knows_when_shown(prompt)

    trial = trial_of(collection, dict.fromkeys(collection.queries, ""))
    _, fixes = run_fixes(collection, serve(flaky), trial, encoder)
    assert fixes.best.name == "bm25" and (fixes.n, fixes.gain) == (5, 1)
    assert row(fixes, "bm25")["right"] == 1


def test_a_setting_of_which_half_the_answers_fail_is_not_chosen(serve, encoder):
    collection = small_collection({"dev": 8, "train": 8})
    failing = {name[2:] for name in ids_of(collection, "dev")[::2]}

    def flaky(prompt):
        word = prompt.split("where is ")[1].split(" now?")[0]
        return None if word in failing else knows_when_shown(prompt)

    trial = trial_of(collection, dict.fromkeys(collection.queries, ""))
    _, fixes = run_fixes(collection, serve(flaky), trial, encoder)
    assert fixes.best is None and fixes.chosen_on == 8


def test_a_setting_that_answers_only_the_easy_questions_does_not_win_by_leaving_out_the_others(serve, encoder):
    """The system is right on six of eight; the setting gives one answer, right as before, and fails on seven."""
    collection = small_collection({"dev": 8, "train": 8})
    dev = ids_of(collection, "dev")

    def one_answer(prompt):
        return knows_when_shown(prompt) if f"where is {dev[0][2:]} now?" in prompt else None

    said = dict.fromkeys(collection.queries, "") | {name: reference(name[2:]) for name in dev[:6]}
    _, fixes = run_fixes(collection, serve(one_answer), trial_of(collection, said), encoder)
    assert fixes.best is None


def test_a_system_that_is_all_right_is_kept(serve, encoder):
    collection = small_collection({"dev": 4, "train": 4})
    said = {name: reference(name[2:]) for name in collection.queries}
    _, fixes = run_fixes(collection, serve(knows_when_shown), trial_of(collection, said), encoder)
    assert fixes.best is None


def test_a_setting_that_the_generator_cannot_read_does_not_end_the_audit(base, encoder):
    """Twice the passages would be longer than the generator's window of 1024 tokens."""
    collection = small_collection({"dev": 3, "train": 3})
    texts = [(f"p-{word}", "", "bab " * 270 + word, "d") for word in NUMBERS]
    long = replace(collection, corpus=corpus_from_rows(texts))
    run = {
        name: {p: -float(rank) for rank, p in enumerate(["p-pat", "p-pus", f"p-{name[2:]}", "p-nor"])}
        for name in collection.queries
    }
    system = replace(base, generator=replace(base.generator, max_context_tokens=600))
    _, fixes = run_fixes(long, system, trial_of(long, dict.fromkeys(long.queries, ""), run), encoder)
    assert (row(fixes, "4 passages")["shown"] == 1 and fixes.best is None) or fixes.best.name != "4 passages"


def test_the_same_answers_are_no_gain_whoever_judged_the_system(serve, encoder):
    """One passage is ranked, so `one passage` shows the same and gets the same answers; a strict judge had said 0."""
    collection = small_collection({"dev": 5, "train": 5})
    run = {name: {f"p-{name[2:]}": 1.0} for name in collection.queries}
    system = serve(knows_when_shown)
    trial = trial_of(collection, {name: reference(name[2:]) for name in collection.queries}, run)
    evidence = gather(collection, trial, correctness_of(collection, trial, encoder), encoder)
    fixes = try_fixes(collection, system, trial, evidence.assign(correctness_retrieved=0.0), encoder)
    assert fixes.best is None or not fixes.gain > 0


def test_of_settings_with_as_many_right_answers_the_one_with_the_better_estimates_is_chosen(serve, encoder):
    """All are wrong; only from a single passage, and not the needed one, does the system say something like it."""
    collection = small_collection({"dev": 8, "train": 8})
    trial = trial_of(collection, dict.fromkeys(collection.queries, ""))
    system = serve(lambda prompt: "Ask kuku jeje zozo vivi." if shows_one_passage_in_vain(prompt) else "")
    _, fixes = run_fixes(collection, system, trial, encoder)
    assert fixes.best.name == "one passage" and fixes.gain == 0
    assert -fixes.low == fixes.high == unseen(8), "not one of eight changed, but one of a few others might"
    assert fixes.table["right"].fillna(0).eq(0).all()


def test_more_right_answers_are_worth_more_than_better_estimates(serve, encoder):
    """bm25 makes half of the answers right and leaves the others empty; `one passage` brings all of them nearer."""
    collection = small_collection({"dev": 8, "train": 8})
    half = {name[2:] for split in ("dev", "train") for name in ids_of(collection, split)[::2]}

    def reply(prompt):
        word = prompt.split("where is ")[1].split(" now?")[0]
        if shows_one_passage_in_vain(prompt):
            return "North."
        return knows_when_shown(prompt) if word in half else ""

    trial = trial_of(collection, dict.fromkeys(collection.queries, ""))
    _, fixes = run_fixes(collection, serve(reply), trial, encoder, right_from=0.97)
    assert row(fixes, "one passage")["correctness"] > row(fixes, "bm25")["correctness"] + 0.1
    assert (row(fixes, "one passage")["right"], row(fixes, "bm25")["right"]) == (0, 0.5)
    assert fixes.best.name == "bm25" and fixes.gain == 0.5


def test_from_where_on_an_answer_is_right_is_a_parameter(serve, encoder):
    collection = small_collection({"dev": 8, "train": 8})
    trial = trial_of(collection, dict.fromkeys(collection.queries, ""))
    system = serve(knows_when_shown)
    assert run_fixes(collection, system, trial, encoder, right_from=0.5)[1].gain == 1
    assert run_fixes(collection, system, trial, encoder, right_from=1.0)[1].gain == 0


def test_a_gain_that_makes_no_answer_right_promises_no_right_answer(serve, encoder):
    """Correctness may rise from 0 to .2 on every question: not one answer more is right."""
    collection = small_collection({"dev": 8, "train": 8})
    trial = trial_of(collection, dict.fromkeys(collection.queries, ""))
    others = {name: replace(answer, answer="") for name, answer in trial.answers["retrieved"].items()}
    trial = replace(trial, answers=trial.answers | {"oracle": others, "none": others})
    system = serve(lambda prompt: knows_when_shown(prompt) and "Ask kuku jeje zozo vivi.")
    evidence, fixes = run_fixes(collection, system, trial, encoder)
    assert 0.05 < row(fixes, "bm25")["correctness"] < 0.5, "a little nearer"
    assert row(fixes, "bm25")["right"] == 0 and fixes.gain == 0, "but not right"
    projection = decide(evidence, (), fixes, Criteria()).projection
    assert projection.now == 0 and projection.settings == pytest.approx(0)


def test_a_gain_on_one_question_has_no_interval():
    gain, low, high = fixes._interval(np.array([1.0]), seed=0)
    assert gain == 1.0
    assert np.isnan(low) and np.isnan(high)
