import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ragbench.collection.schema import passage_texts
from ragbench.deployment import bundle as bundles
from ragbench.deployment.bundle import MANIFEST, SEAL, pack, read_canaries, read_manifest, system_of, verify
from ragbench.errors import RagbenchError
from ragbench.evaluation.evaluate import System
from ragbench.files import sha256_file, write_json, write_text
from ragbench.retrieval.encoder import encode
from ragbench.retrieval.index import build_index, read_index, write_index
from ragbench.retrieval.retrieve import encoder_of


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def seal(folder: Path, **changes) -> None:
    """Write the manifest anew, as somebody would who knows how: files hashed again, fields changed."""
    record = json.loads((folder / MANIFEST).read_text()) | changes
    record["files"] = {name: sha256_file(folder / name) for name in files(folder) if name not in (MANIFEST, SEAL)}
    write_json(folder / MANIFEST, record)
    write_text(folder / SEAL, sha256_file(folder / MANIFEST) + "\n")


def test_a_bundle_holds_all_parts_and_is_whole(bundle, contents):
    manifest = verify(bundle)
    assert {"settings.json", "passages.parquet", "index.faiss", "evaluation.json", "canaries.jsonl"} <= set(
        files(bundle)
    )
    assert (bundle / "retriever" / "modules.json").is_file() and (bundle / "generator" / "config.json").is_file()
    assert manifest.passages == len(contents.collection.corpus) and manifest.collection == "f" * 64
    assert manifest.retriever.inside and manifest.built_with == manifest.retriever.sha256
    assert read_canaries(bundle) == list(contents.canaries)
    system = system_of(bundle, manifest)
    assert Path(system.retriever.model) == bundle / "retriever" and Path(system.generator.model) == bundle / "generator"
    assert replace(system.generator, model="", device="") == replace(contents.system.generator, model="", device="")
    assert str(contents.system.generator.model) not in (bundle / "settings.json").read_text()


def test_one_changed_byte_anywhere_is_found_and_named(bundle):
    for name in files(bundle):
        path = bundle / name
        data = path.read_bytes()
        for place in {0, len(data) // 2, len(data) - 1}:
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            with pytest.raises(RagbenchError) as error:
                verify(bundle)
            # A changed seal cannot be told from a changed manifest.
            assert name in str(error.value) or {name} <= {MANIFEST, SEAL}, (name, place)
        path.write_bytes(data)
    verify(bundle)


def test_a_missing_and_a_stray_file_are_named(bundle):
    (bundle / "index.faiss").rename(bundle / "generator" / "other.bin")
    with pytest.raises(RagbenchError, match=r"index\.faiss is missing"):
        verify(bundle)
    (bundle / "generator" / "other.bin").rename(bundle / "index.faiss")
    (bundle / "retriever" / "1_Pooling" / "extra.json").write_text("{}")
    with pytest.raises(RagbenchError, match=r"extra\.json does not belong"):
        verify(bundle)


def other_index(contents, bundle):
    vectors = encode(encoder_of(contents.system.retriever), passage_texts(contents.collection), "passage")
    turned = np.roll(vectors, 1, axis=1)
    write_index(build_index(turned), bundle / "index.faiss")


def test_an_index_of_another_retriever_is_found_even_where_the_manifest_was_written_to_fit(bundle, contents):
    other_index(contents, bundle)
    seal(bundle)
    with pytest.raises(RagbenchError, match=r"index\.faiss was made with another retriever"):
        verify(bundle)


def test_an_index_of_fewer_passages_or_of_another_retrievers_hash_is_refused(bundle, contents):
    seal(bundle, built_with="0" * 64)
    with pytest.raises(RagbenchError, match=r"index\.faiss was made with another retriever"):
        verify(bundle)
    seal(bundle, built_with=json.loads((bundle / MANIFEST).read_text())["retriever"]["sha256"])
    verify(bundle)
    vectors = encode(encoder_of(contents.system.retriever), passage_texts(contents.collection), "passage")
    write_index(build_index(vectors[:-1]), bundle / "index.faiss")
    seal(bundle)
    with pytest.raises(RagbenchError, match=r"index\.faiss was made with another"):
        verify(bundle)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_every_kind_of_index_is_written_read_and_checked(contents, tmp_path, kind):
    system = replace(contents.system, retriever=replace(contents.system.retriever, index=kind))
    pack(replace(contents, system=system), tmp_path / "b")
    verify(tmp_path / "b")
    assert read_index(tmp_path / "b" / "index.faiss").ntotal == len(contents.collection.corpus)


def test_a_file_that_is_no_index_says_so(tmp_path):
    (tmp_path / "index.faiss").write_bytes(b"no index at all")
    with pytest.raises(RagbenchError, match="is no index of FAISS"):
        read_index(tmp_path / "index.faiss")


def test_bm25_needs_no_index_and_no_encoder(contents, tmp_path):
    system = replace(contents.system, retriever=replace(contents.system.retriever, method="bm25"))
    manifest = pack(replace(contents, system=system, tuned_retriever=False), tmp_path / "b")
    assert manifest.retriever is None and not manifest.built_with
    assert "index.faiss" not in files(tmp_path / "b")
    verify(tmp_path / "b")


def test_a_model_that_is_not_inside_is_known_by_its_hash(contents, tmp_path, tiny_generator):
    own = tmp_path / "generator-of-mine"
    shutil.copytree(tiny_generator, own)
    system = replace(contents.system, generator=replace(contents.system.generator, model=str(own)))
    manifest = pack(replace(contents, system=system, tuned_generator=False), tmp_path / "b")
    assert manifest.generator.name == str(own) and not (tmp_path / "b" / "generator").exists()
    verify(tmp_path / "b")
    config = json.loads((own / "config.json").read_text())
    write_json(own / "config.json", config | {"rope_theta": 1234.0})
    with pytest.raises(RagbenchError, match=r"generator-of-mine.*another one than the bundle was made with"):
        verify(tmp_path / "b")


def test_a_served_generator_is_known_by_its_name(contents, tmp_path):
    served = replace(contents.system.generator, backend="endpoint", model="ft:some-model", endpoint="http://x/v1")
    system = System("generator", contents.system.retriever, served)
    manifest = pack(replace(contents, system=system, tuned_generator=False), tmp_path / "b")
    assert (manifest.generator.name, manifest.generator.sha256) == ("ft:some-model", "")
    verify(tmp_path / "b")


def test_nothing_half_written_is_left_and_nothing_is_written_over(contents, bundle, monkeypatch):
    with pytest.raises(RagbenchError, match="is there already"):
        pack(contents, bundle)
    monkeypatch.setattr(bundles, "write_index", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pack(contents, bundle.parent / "0002")
    assert [path.name for path in bundle.parent.iterdir()] == ["0001"]


def test_what_is_no_bundle_or_of_a_later_format_says_so(bundle, tmp_path):
    with pytest.raises(RagbenchError, match=r"holds no bundle.*ragbench bundle create"):
        read_manifest(tmp_path)
    seal(bundle, format=99)
    with pytest.raises(RagbenchError, match="format 99"):
        read_manifest(bundle)
