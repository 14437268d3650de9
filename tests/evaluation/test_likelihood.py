import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ragbench import cache
from ragbench.evaluation.likelihood import CACHE, Continuation, log_probs


def naive(folder, each):
    """Return what the definition says: one sequence, all logits, no batch."""
    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer(each.prompt)["input_ids"]
    found = []
    for sentence in each.sentences:
        own = tokenizer(f" {sentence}", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = network(torch.tensor([ids + own])).logits[0]
        steps = torch.log_softmax(logits, dim=-1)[len(ids) - 1 : -1]
        found.append(steps[range(len(own)), own].numpy())
        ids = ids + own
    return found


CONTINUATIONS = [
    Continuation("bab dad gag", ("lal mam", "nan pap rar sas")),
    Continuation("bab", ("tat",)),
    Continuation("bab dad gag kak lal mam nan bob", ("dod gog kok", "lol", "mom non pop ror sos")),
]


def test_batched_and_padded_values_are_those_of_each_text_alone(tiny_generator):
    found = log_probs(CONTINUATIONS, model=str(tiny_generator), dtype="float32", device="cpu")
    for each, values in zip(CONTINUATIONS, found, strict=True):
        for own, expected in zip(values, naive(tiny_generator, each), strict=True):
            np.testing.assert_allclose(own, expected, atol=1e-4)


def test_what_is_cached_is_not_computed_again(tiny_generator, monkeypatch):
    first = log_probs(CONTINUATIONS, model=str(tiny_generator), dtype="float32", device="cpu")
    assert cache.sizes()[CACHE] > 0
    monkeypatch.setattr(
        "ragbench.evaluation.likelihood._forward", lambda *_: pytest.fail("the cache holds every value")
    )
    again = log_probs(CONTINUATIONS, model=str(tiny_generator), dtype="float32", device="cpu")
    for ours, theirs in zip(first, again, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_long_prompt_is_cut_at_the_front_and_late_sentences_have_no_tokens(tiny_generator):
    long = Continuation("bab " * 3000 + "dad", ("lal mam", "nan " * 600, "pap"))
    short = Continuation("bab " * 1500 + "dad", long.sentences)
    first, second = log_probs([long, short], model=str(tiny_generator), dtype="float32", device="cpu")
    assert len(first[0]) > 0 and len(first[2]) == 0
    np.testing.assert_allclose(first[0], second[0], atol=1e-4)
