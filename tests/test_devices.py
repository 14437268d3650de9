import json
import os

import pytest
import torch

from ragbench.devices import choose_device, choose_dtype, memory_of
from ragbench.errors import RagbenchError


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def one_gpu(monkeypatch, no_gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture
def processor_with_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})


def test_auto_is_the_processor_where_there_is_no_gpu(no_gpu):
    assert choose_device() == choose_device("auto") == choose_device("cpu") == "cpu"


def test_auto_prefers_the_gpu_and_a_named_device_is_kept(one_gpu):
    assert (choose_device("auto"), choose_device("cpu"), choose_device("cuda:0")) == ("cuda", "cpu", "cuda:0")


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps", "gpu", ""])
def test_a_device_that_is_not_there_names_those_that_are(no_gpu, name):
    with pytest.raises(RagbenchError, match=rf"'{name}'.*there is: cpu.*auto"):
        choose_device(name)


def test_a_named_precision_is_kept_on_every_device():
    for device in ("cpu", "cuda", "mps"):
        assert choose_dtype(device, "float32") == torch.float32
        assert choose_dtype(device, "bfloat16") == torch.bfloat16


def test_an_unknown_precision_names_the_known_ones():
    with pytest.raises(RagbenchError, match=r"'float16'.*auto, bfloat16, float32"):
        choose_dtype("cpu", "float16")


def test_a_processor_without_bfloat16_computes_in_float32_unmeasured(monkeypatch, own_cache):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    assert choose_dtype("cpu") == torch.float32
    assert not own_cache.exists()


def test_auto_is_float32_on_apples_gpu():
    assert choose_dtype("mps") == torch.float32


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_on_cuda_asks_the_card(monkeypatch, supported, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert choose_dtype("cuda") == choose_dtype("cuda:0") == dtype


def test_the_measured_choice_is_kept_for_the_next_run(processor_with_bfloat16, own_cache):
    chosen = choose_dtype("cpu")
    [kept] = (own_cache / "machine").iterdir()
    speedup = json.loads(kept.read_text())["bfloat16_speedup"]
    assert speedup > 0 and chosen == (torch.bfloat16 if speedup >= 1.2 else torch.float32)
    for known, dtype in ((0.5, torch.float32), (1.19, torch.float32), (1.2, torch.bfloat16), (3.0, torch.bfloat16)):
        kept.write_text(json.dumps({"bfloat16_speedup": known}))
        assert choose_dtype("cpu") == dtype


def test_another_processor_is_measured_anew(processor_with_bfloat16, own_cache, monkeypatch):
    choose_dtype("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    choose_dtype("cpu")
    assert len(list((own_cache / "machine").iterdir())) == 2


def test_the_memory_of_the_processor_is_in_bytes():
    memory = memory_of("cpu")
    assert memory is not None and 2**28 < memory < 2**50


def unknown_name(name):
    raise ValueError(f"unrecognized configuration name {name}")


@pytest.mark.parametrize("sysconf", [unknown_name, lambda name: -1])
def test_memory_that_the_system_does_not_tell_is_none(monkeypatch, sysconf):
    monkeypatch.setattr(os, "sysconf", sysconf)
    assert memory_of("cpu") is None


def test_a_system_without_sysconf_does_not_tell_its_memory(monkeypatch):
    monkeypatch.delattr(os, "sysconf")
    assert memory_of("cpu") is None


def test_the_memory_of_a_gpu_is_its_own(monkeypatch):
    card = type("Card", (), {"total_memory": 80 * 2**30})()
    monkeypatch.setattr(torch.cuda, "get_device_properties", {"cuda": card, "cuda:1": card}.__getitem__)
    assert memory_of("cuda") == memory_of("cuda:1") == 80 * 2**30
