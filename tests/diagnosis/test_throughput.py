import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from ragbench.diagnosis import throughput
from ragbench.diagnosis.throughput import measure_throughput
from ragbench.errors import RagbenchError
from ragbench.models import model_hash


@pytest.fixture
def measured(tiny_generator):
    return measure_throughput(str(tiny_generator), device="cpu", dtype="float32")


def kept(own_cache):
    return sorted((own_cache / "machine").glob("throughput-*.json"))


def test_reading_and_both_ways_of_training_are_measured(measured, tiny_generator):
    network = AutoModelForCausalLM.from_pretrained(tiny_generator)
    assert measured.parameters == sum(weight.numel() for weight in network.parameters())
    assert (measured.device, measured.dtype) == ("cpu", "float32")
    assert measured.forward > 0 and measured.lora > 0 and measured.full > 0


def test_the_finding_is_kept_so_that_a_report_made_again_says_the_same(measured, tiny_generator, own_cache):
    [path] = kept(own_cache)
    assert measure_throughput(str(tiny_generator), device="cpu", dtype="float32") == measured
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora": 12.5}))
    assert measure_throughput(str(tiny_generator), device="cpu", dtype="float32").lora == 12.5
    assert len(kept(own_cache)) == 1


def test_another_precision_or_model_is_measured_anew(measured, tiny_generator, own_cache, tmp_path):
    assert measure_throughput(str(tiny_generator), device="cpu", dtype="bfloat16").dtype == "bfloat16"
    assert len(kept(own_cache)) == 2
    network = AutoModelForCausalLM.from_pretrained(tiny_generator)
    with torch.no_grad():
        network.lm_head.weight += 1
    network.save_pretrained(tmp_path / "other")
    measure_throughput(str(tmp_path / "other"), device="cpu", dtype="float32")
    assert len(kept(own_cache)) == 3


@pytest.mark.parametrize("memory", [None, 10**6])
def test_full_training_is_not_tried_where_the_memory_may_not_do(tiny_generator, monkeypatch, memory):
    monkeypatch.setattr(throughput, "memory_of", lambda device: memory)
    found = measure_throughput(str(tiny_generator), device="cpu", dtype="float32")
    assert found.full is None and found.lora > 0 and found.forward > 0


def test_measuring_changes_no_weight(tiny_generator):
    before = model_hash(tiny_generator)
    measure_throughput(str(tiny_generator), device="cpu", dtype="float32")
    assert model_hash(tiny_generator) == before


def test_measuring_leaves_the_random_numbers_of_the_run_as_they_are(tiny_generator):
    """Else a run that measures and one that finds the measurement in the cache would go on differently."""
    before = torch.get_rng_state()
    measure_throughput(str(tiny_generator), device="cpu", dtype="float32")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_or_device_that_is_not_there_is_an_error_that_names_it(tiny_generator, own_cache):
    with pytest.raises(RagbenchError, match="no/such/model"):
        measure_throughput("no/such/model", device="cpu")
    with pytest.raises(RagbenchError, match="'abacus'"):
        measure_throughput(str(tiny_generator), device="abacus")
    assert not kept(own_cache)
