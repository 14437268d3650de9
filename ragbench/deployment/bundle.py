"""A bundle: all that one system needs to answer, in a folder whose manifest binds the parts to each other by SHA-256.

manifest.json      what it is made of; `manifest.sha256` holds its hash
settings.json      retriever and generator: prompt, limits, decoding
passages.parquet   the corpus
index.faiss        its embeddings (dense and fused retrieval)
retriever/         the tuned bi-encoder; a model that was not tuned is known by name and hash
generator/         the tuned generator, an adapter or a whole model; likewise
evaluation.json    how the system was measured
canaries.jsonl     questions with what the system found and answered when it was packed
"""

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from datasets import Dataset

from ragbench.collection.schema import Collection, passage_texts
from ragbench.errors import RagbenchError
from ragbench.evaluation.evaluate import System
from ragbench.files import sha256_file, write_json, write_text
from ragbench.generation.generate import Generator
from ragbench.models import ADAPTER_CONFIG, model_hash, resolve_model
from ragbench.retrieval.encoder import encode
from ragbench.retrieval.index import build_index, read_index, vectors_of, write_index
from ragbench.retrieval.retrieve import Retriever, encoder_of

FORMAT = 1
MANIFEST, SEAL = "manifest.json", "manifest.sha256"
SETTINGS, PASSAGES, INDEX = "settings.json", "passages.parquet", "index.faiss"
RETRIEVER, GENERATOR = "retriever", "generator"
EVALUATION, CANARIES = "evaluation.json", "canaries.jsonl"
PROBED = 16
"""Passages that are encoded anew to see whether the index was made by the retriever inside."""
ALIKE = 0.99
"""Cosine that they must reach: other models are far below, another precision or batch is above .999."""


@dataclass(frozen=True)
class Part:
    """A model of a bundle.

    Attributes:
        name, revision: by which it is had where it is not inside (see `ragbench.models`), or a server knows it.
        inside: whether its files are in the bundle's folder.
        sha256: `models.model_hash`, of an adapter with the model that it adapts; empty for a served model.
    """

    name: str
    revision: str
    inside: bool
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a bundle is made of.

    Attributes:
        system: its name in the evaluation (`base`, `retriever`, `generator`, `both`, `end_to_end`).
        origin: the run it was packed from, for people.
        created: UTC, ISO 8601.
        collection: fingerprint of the collection that it was evaluated on.
        passages: how many there are.
        retriever, generator: its models; the retriever is None for BM25 alone.
        built_with: the hash of the bi-encoder that the index was made with; empty without an index.
        files: SHA-256 of every file, by its name within the folder.
        versions: of the libraries it was packed with.
    """

    system: str
    origin: str
    created: str
    collection: str
    passages: int
    retriever: Part | None
    generator: Part
    built_with: str
    files: dict[str, str]
    versions: dict[str, str]
    format: int = FORMAT


@dataclass(frozen=True)
class Contents:
    """What a bundle is packed from.

    Attributes:
        system: with the models that it answers with: folders of tuned ones, names of the others.
        tuned_retriever, tuned_generator: whether these are folders to be packed.
        collection: whose passages it answers from.
        fingerprint: of the collection.
        evaluation: how the system was measured, as JSON.
        canaries: records as `canaries.choose` makes them.
        versions: of the libraries.
    """

    system: System
    tuned_retriever: bool
    tuned_generator: bool
    collection: Collection
    fingerprint: str
    evaluation: dict[str, Any]
    canaries: Sequence[dict[str, Any]]
    origin: str
    versions: dict[str, str]


def pack(contents: Contents, folder: Path) -> Manifest:
    """Write a bundle; the folder appears when it is whole.

    Raises:
        RagbenchError: the folder is there already, or a model cannot be had.
    """
    if folder.exists():
        raise RagbenchError(f"{folder} is there already; a bundle is never changed.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.partial-"))
    try:
        manifest = _write(contents, partial)
        partial.chmod(0o755)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def verify(folder: Path) -> Manifest:
    """Check every part of a bundle against its manifest, and the index against the retriever inside.

    Raises:
        RagbenchError: a part is missing, damaged, swapped or not the bundle's own; the message names it.
    """
    manifest = read_manifest(folder)
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    for name, sha256 in manifest.files.items():
        if name not in there:
            raise RagbenchError(f"{folder / name} is missing from the bundle. Use another version, or pack it again.")
        if sha256_file(there[name]) != sha256:
            raise _damaged(folder / name)
    strange = sorted(set(there) - set(manifest.files) - {MANIFEST, SEAL})
    if strange:
        raise RagbenchError(f"{folder / strange[0]} does not belong to the bundle. Delete it, or pack it again.")
    for name, part in ((RETRIEVER, manifest.retriever), (GENERATOR, manifest.generator)):
        if part is not None and part.sha256:
            _check_model(folder, name, part)
    if manifest.built_with:
        _check_index(folder, manifest)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest, after checking that it is as it was written.

    Raises:
        RagbenchError: there is no bundle, or the manifest is damaged or of a later format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise RagbenchError(f"{folder} holds no bundle: there is no {MANIFEST}. Make one: ragbench bundle create.")
    try:
        sealed = (folder / SEAL).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise _damaged(folder / SEAL) from None
    if sealed != _seal_of(path):
        raise _damaged(path)
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["format"] != FORMAT:
        raise RagbenchError(f"{path} has format {record['format']}; this ragbench reads {FORMAT}. Update ragbench.")
    retriever = Part(**record["retriever"]) if record["retriever"] else None
    return Manifest(**{**record, "retriever": retriever, "generator": Part(**record["generator"])})


def system_of(folder: Path, manifest: Manifest) -> System:
    """Return the bundle's system, with models where they are."""
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    retriever, generator = Retriever(**settings["retriever"]), Generator(**settings["generator"])
    if manifest.retriever and manifest.retriever.inside:
        retriever = replace(retriever, model=str(folder / RETRIEVER), revision="")
    if manifest.generator.inside:
        generator = replace(generator, model=str(folder / GENERATOR), revision="")
    return System(manifest.system, retriever, generator)


def _write(contents: Contents, folder: Path) -> Manifest:
    retriever, generator = contents.system.retriever, contents.system.generator
    dense = retriever.method != "bm25"
    parts = {
        RETRIEVER: _pack_model(folder / RETRIEVER, retriever.model, retriever.revision, contents.tuned_retriever)
        if dense else None,
        GENERATOR: _pack_model(folder / GENERATOR, generator.model, generator.revision, contents.tuned_generator)
        if generator.backend == "local" else Part(generator.model, generator.revision, False, ""),
    }  # fmt: skip
    pq.write_table(contents.collection.corpus.data.table, folder / PASSAGES)
    if dense:
        vectors = encode(encoder_of(retriever), passage_texts(contents.collection), "passage")
        write_index(build_index(vectors, retriever.index, retriever.seed), folder / INDEX)
    # Where to compute is for the machine that answers; tuned models are found inside.
    inside = {RETRIEVER: contents.tuned_retriever, GENERATOR: contents.tuned_generator}
    settings = {
        RETRIEVER: asdict(replace(retriever, device="auto")),
        GENERATOR: asdict(replace(generator, device="auto")),
    }
    write_json(
        folder / SETTINGS, {name: known | ({"model": ""} if inside[name] else {}) for name, known in settings.items()}
    )
    write_json(folder / EVALUATION, contents.evaluation)
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in contents.canaries)
    write_text(folder / CANARIES, "".join(lines))
    retriever_part = parts[RETRIEVER]
    manifest = Manifest(
        contents.system.name,
        contents.origin,
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        contents.fingerprint,
        len(contents.collection.corpus),
        retriever_part,
        cast(Part, parts[GENERATOR]),
        retriever_part.sha256 if retriever_part else "",
        {
            path.relative_to(folder).as_posix(): sha256_file(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
        contents.versions,
    )
    write_json(folder / MANIFEST, asdict(manifest))
    write_text(folder / SEAL, _seal_of(folder / MANIFEST))
    return manifest


def _pack_model(place: Path, name: str, revision: str, tuned: bool) -> Part:
    source = resolve_model(name, revision)
    if not tuned:
        return Part(name, revision, False, model_hash(source))
    shutil.copytree(source, place, ignore=shutil.ignore_patterns("README.md"))
    if (place / ADAPTER_CONFIG).is_file():
        config = json.loads((place / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        return Part(config["base_model_name_or_path"], config.get("revision") or "", True, model_hash(place))
    return Part("", "", True, model_hash(place))


def _check_model(folder: Path, name: str, part: Part) -> None:
    place = folder / name if part.inside else resolve_model(part.name, part.revision)
    found = model_hash(place)
    if found != part.sha256:
        what = f"the model '{part.name}' that it needs" if part.name else f"its {name}"
        raise RagbenchError(
            f"{folder}: {what} is another one than the bundle was made with (SHA-256 {found[:12]}…, not "
            f"{part.sha256[:12]}…). Install that version of the model, or pack the bundle again."
        )


def _check_index(folder: Path, manifest: Manifest) -> None:
    assert manifest.retriever is not None, "an index is made with a retriever"
    wrong = RagbenchError(
        f"{folder / INDEX} was made with another retriever or other passages than those inside. Pack the bundle again."
    )
    if manifest.built_with != manifest.retriever.sha256:
        raise wrong
    index = read_index(folder / INDEX)
    if index.ntotal != manifest.passages:
        raise wrong
    places = np.linspace(0, manifest.passages - 1, min(PROBED, manifest.passages), dtype=np.int64)
    texts = passage_texts(passages_of(folder), places)
    fresh = encode(encoder_of(system_of(folder, manifest).retriever), texts, "passage", keep=False)
    if index.d != fresh.shape[1] or (vectors_of(index, places) * fresh).sum(axis=1).min() < ALIKE:
        raise wrong


def _seal_of(manifest: Path) -> str:
    return sha256_file(manifest) + "\n"


def _damaged(path: Path) -> RagbenchError:
    return RagbenchError(
        f"{path} is not what was packed: the bundle is damaged. Use another version, or pack it again."
    )


def passages_of(folder: Path) -> Collection:
    """Return a bundle's passages as a collection without questions."""
    return Collection(folder.parent.name, Dataset(pq.read_table(folder / PASSAGES), fingerprint=uuid4().hex), {}, {})


def files_table(folder: Path, manifest: Manifest) -> pd.DataFrame:
    """Return a row a file of a bundle: its name, size and SHA-256."""
    rows = [
        (name, f"{(folder / name).stat().st_size / 2**20:.2f}", f"{sha256[:16]}…")
        for name, sha256 in manifest.files.items()
    ]
    return pd.DataFrame(rows, columns=["file", "MiB", "SHA-256"])


def read_canaries(folder: Path) -> list[dict[str, Any]]:
    """Return a bundle's canaries: query_id, split, question, passage_ids and answer of each."""
    lines = (folder / CANARIES).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return [json.loads(line) for line in lines if line]
