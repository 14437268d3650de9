import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest
import torch
from sentence_transformers import SentenceTransformer

from ragbench import cache
from ragbench.errors import RagbenchError
from ragbench.retrieval.encoder import encode, load_sentence_transformer, open_encoder

TEXTS = ["bab deg", "gug lok mip not pur", "sat", "bab deg", "Ten words. del kep rit", "x" * 50, "sat sat sat sat"]


def opened(folder, **settings):
    return open_encoder(str(folder), device="cpu", **{"dtype": "float32", **settings})


def plain(folder, texts, max_tokens=256):
    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = max_tokens
    return model.encode(texts, normalize_embeddings=True)


@contextmanager
def counted_batches(encoder):
    """Collect how many texts each forward pass of the loaded model gets."""
    model = load_sentence_transformer(encoder.folder, encoder.key, encoder.max_tokens, encoder.device, encoder.dtype)
    sizes = []
    hook = model[0].register_forward_hook(lambda _module, given, _out: sizes.append(len(given[0]["input_ids"])))
    try:
        yield sizes
    finally:
        hook.remove()


def entries(folder):
    with sqlite3.connect(folder / "embeddings.sqlite") as connection:
        return connection.execute("SELECT count(*) FROM entries").fetchone()[0]


def with_other_weights(folder, target):
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    noisy = {name: w + 0.1 * torch.randn(w.shape, generator=torch.manual_seed(1)) for name, w in weights.items()}
    save_file(noisy, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_vectors_equal_plain_sentence_transformers_in_order(tiny_encoder):
    vectors = encode(opened(tiny_encoder), TEXTS, "passage")
    assert vectors.dtype == np.float32 and vectors.shape == (7, 32)
    np.testing.assert_allclose(vectors, plain(tiny_encoder, TEXTS), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_second_call_from_cache_has_the_same_order_and_duplicates(tiny_encoder):
    encoder = opened(tiny_encoder)
    first = encode(encoder, TEXTS, "passage")
    assert np.array_equal(encode(encoder, TEXTS[::-1], "passage"), first[::-1])
    assert np.array_equal(first[0], first[3])


def test_arrow_text_with_several_chunks_gives_the_same_vectors(tiny_encoder):
    chunks = pa.chunked_array([TEXTS[:2], TEXTS[2:5], [], TEXTS[5:]], type=pa.string())
    from_chunks = encode(opened(tiny_encoder), chunks, "passage")
    np.testing.assert_allclose(from_chunks, plain(tiny_encoder, TEXTS), atol=1e-5)


def test_batch_size_does_not_change_the_vectors(tiny_encoder):
    small = encode(opened(tiny_encoder, batch_tokens=1), TEXTS, "passage")
    np.testing.assert_allclose(small, plain(tiny_encoder, TEXTS), atol=1e-5)


def test_texts_longer_than_max_tokens_are_cut_there(tiny_encoder):
    long = " ".join(["bab deg gug dok bip"] * 100)  # each word is one token
    vectors = encode(opened(tiny_encoder, max_tokens=16), [long, "sat"], "passage")
    np.testing.assert_allclose(vectors, plain(tiny_encoder, [long, "sat"], max_tokens=16), atol=1e-5)
    np.testing.assert_allclose(vectors[0], plain(tiny_encoder, [" ".join(long.split()[:16])])[0], atol=1e-5)
    assert np.abs(vectors[0] - plain(tiny_encoder, [long])[0]).max() > 1e-3


def test_empty_string_gets_a_finite_vector_and_leaves_the_others_alone(tiny_encoder):
    vectors = encode(opened(tiny_encoder), ["", "bab deg", ""], "passage")
    np.testing.assert_allclose(vectors, plain(tiny_encoder, ["", "bab deg", ""]), atol=1e-5)
    assert np.isfinite(vectors).all()


def test_no_texts_give_no_vectors(tiny_encoder):
    assert len(encode(opened(tiny_encoder), [], "query")) == 0


def test_bfloat16_vectors_are_close_and_exactly_of_unit_length(tiny_encoder):
    vectors = encode(opened(tiny_encoder, dtype="bfloat16"), TEXTS, "passage")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    cosines = (vectors * plain(tiny_encoder, TEXTS)).sum(axis=1)
    assert cosines.min() > 0.999


def test_second_call_computes_nothing(tiny_encoder):
    encoder = opened(tiny_encoder)
    first = encode(encoder, TEXTS, "passage")
    with counted_batches(encoder) as sizes:
        again = encode(encoder, TEXTS, "passage")
    assert sizes == [] and np.array_equal(first, again)


def test_cached_texts_need_no_weights(tiny_encoder, tmp_path):
    encoder = opened(shutil.copytree(tiny_encoder, tmp_path / "copy"))
    first = encode(encoder, TEXTS, "passage")
    shutil.rmtree(tmp_path / "copy")
    load_sentence_transformer.cache_clear()
    assert np.array_equal(encode(encoder, TEXTS, "passage"), first)


def test_only_new_and_distinct_texts_are_computed(tiny_encoder):
    encoder = opened(tiny_encoder)
    encode(encoder, TEXTS[:3], "passage")
    with counted_batches(encoder) as sizes:
        encode(encoder, [*TEXTS[:3], "new nel", "new nel", "nom"], "passage")
    assert sum(sizes) == 2


def test_batches_stay_within_their_tokens(tiny_encoder):
    encoder = opened(tiny_encoder, batch_tokens=12)
    words = [f"bab deg gug {a}{b}{c}" for a in "bdg" for b in "aei" for c in "klm"]  # four tokens each
    with counted_batches(encoder) as sizes:
        encode(encoder, words, "passage")
    assert sizes == [3] * 9


def test_another_checkpoint_never_reads_the_old_vectors(tiny_encoder, tmp_path):
    tuned = with_other_weights(tiny_encoder, tmp_path / "tuned")
    old = encode(opened(tiny_encoder), TEXTS, "passage")
    new = encode(opened(tuned), TEXTS, "passage")
    np.testing.assert_allclose(new, plain(tuned, TEXTS), atol=1e-5)
    assert np.abs(new - old).max() > 1e-2


def test_the_same_weights_in_another_folder_reuse_the_vectors(tiny_encoder, tmp_path):
    encode(opened(tiny_encoder), TEXTS, "passage")
    moved = opened(shutil.copytree(tiny_encoder, tmp_path / "moved"))
    with counted_batches(moved) as sizes:
        encode(moved, TEXTS, "passage")
    assert sizes == []


@pytest.mark.parametrize("settings", [{"max_tokens": 2}, {"dtype": "bfloat16"}])
def test_other_settings_never_read_the_old_vectors(tiny_encoder, own_cache, settings):
    encode(opened(tiny_encoder), TEXTS, "passage")
    before = entries(own_cache)
    encode(opened(tiny_encoder, **settings), TEXTS, "passage")
    assert (before, entries(own_cache)) == (6, 12)


def test_query_and_passage_of_the_same_text_are_kept_apart(tiny_encoder, own_cache):
    encode(opened(tiny_encoder), TEXTS, "query")
    encode(opened(tiny_encoder), TEXTS, "passage")
    assert entries(own_cache) == 12


def test_the_models_own_prompts_are_used(tiny_encoder, tmp_path):
    model = SentenceTransformer(str(tiny_encoder), device="cpu", prompts={"query": "bab gug ", "document": "sat "})
    model.save(str(tmp_path / "prompted"))
    encoder = opened(tmp_path / "prompted")
    queries, passages = encode(encoder, TEXTS, "query"), encode(encoder, TEXTS, "passage")
    np.testing.assert_allclose(queries, plain(tiny_encoder, ["bab gug " + text for text in TEXTS]), atol=1e-5)
    np.testing.assert_allclose(passages, plain(tiny_encoder, ["sat " + text for text in TEXTS]), atol=1e-5)


def test_unknown_model_device_and_dtype_are_named(tiny_encoder):
    for settings in ({"device": "abacus"}, {"dtype": "float9"}):
        with pytest.raises(RagbenchError, match=r"abacus|float9"):
            open_encoder(str(tiny_encoder), **settings)


KILLED = """
import os, signal, sys
from ragbench import cache
from ragbench.retrieval.encoder import encode, open_encoder
real_put, done = cache.put, []
def put(name, values):
    if len(done) == 3:
        os.kill(os.getpid(), signal.SIGKILL)  # the fourth batch is computed, but not put
    real_put(name, values)
    done.append(name)
cache.put = put
encoder = open_encoder(sys.argv[1], device="cpu", dtype="float32", batch_tokens=16)
encode(encoder, open(sys.argv[2]).read().splitlines(), "passage")
"""


def test_a_killed_run_loses_one_batch_and_resumes_to_the_same_vectors(tiny_encoder, tmp_path, own_cache, monkeypatch):
    random = np.random.default_rng(3)
    words = ["bab", "deg", "gug", "lok", "mip", "not", "pur", "sat"]
    texts = list(dict.fromkeys(" ".join(random.choice(words, size=random.integers(1, 9))) for _ in range(60)))
    (tmp_path / "texts").write_text("\n".join(texts))
    command = [sys.executable, "-c", KILLED, str(tiny_encoder), str(tmp_path / "texts")]
    assert subprocess.run(command, env=dict(os.environ), capture_output=True).returncode == -signal.SIGKILL

    encoder = opened(tiny_encoder, batch_tokens=16)
    kept = entries(own_cache)
    with counted_batches(encoder) as resumed:
        vectors = encode(encoder, texts, "passage")
    monkeypatch.setenv("RAGBENCH_CACHE", str(tmp_path / "undisturbed"))
    with counted_batches(encoder) as whole:
        undisturbed = encode(encoder, texts, "passage")

    assert kept == sum(whole[:3]) and resumed == whole[3:] and len(whole) > 6
    assert np.array_equal(vectors, undisturbed)
    np.testing.assert_allclose(vectors, plain(tiny_encoder, texts), atol=1e-5)


def test_vectors_survive_an_error_in_a_later_batch(tiny_encoder, own_cache, monkeypatch):
    real_put, calls = cache.put, []

    def failing(name, values):
        calls.append(name)
        if len(calls) == 2:
            raise OSError("disk full")
        real_put(name, values)

    monkeypatch.setattr(cache, "put", failing)
    with pytest.raises(OSError, match="disk full"):
        encode(opened(tiny_encoder, batch_tokens=1), TEXTS, "passage")
    assert entries(own_cache) == 1
