import json
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragbench.deployment.bundle import MANIFEST, SEAL, Manifest, Part
from ragbench.deployment.store import add, current, find_bundle, history, names, promote, roll_back, versions
from ragbench.errors import RagbenchError
from ragbench.files import sha256_file


def packed(folder):
    """Write a manifest and nothing else: what the store looks at."""
    manifest = Manifest("both", "runs/x", "2026-01-01T00:00:00Z", "", 1, None, Part("m", "", False, ""), "", {}, {})
    folder.mkdir()
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest)))
    (folder / SEAL).write_text(sha256_file(folder / MANIFEST) + "\n")
    return manifest


@pytest.fixture
def store(tmp_path):
    for _ in range(3):
        add(tmp_path / "bundles", "docs", packed)
    return tmp_path / "bundles"


def test_versions_count_up_and_none_is_in_use_before_it_is_promoted(store):
    assert names(store) == ["docs"] and versions(store, "docs") == ["0001", "0002", "0003"]
    assert current(store, "docs") == ""
    with pytest.raises(RagbenchError, match=r"No version of 'docs' is in use.*bundle promote docs 0003"):
        find_bundle(store, "docs")


def test_a_promoted_version_is_found_by_the_name_and_others_by_their_number(store):
    promote(store, "docs", "0002", "why not")
    assert find_bundle(store, "docs") == store / "docs" / "0002"
    assert find_bundle(store, "docs/0001") == store / "docs" / "0001"
    assert find_bundle(store / "nowhere", str(store / "docs" / "0003")) == store / "docs" / "0003"
    assert [change.why for change in history(store, "docs")] == ["why not"]


def test_what_is_not_there_is_an_error_that_names_what_is(store):
    with pytest.raises(RagbenchError, match="no bundle 'dogs'; it has: docs"):
        find_bundle(store, "dogs")
    with pytest.raises(RagbenchError, match="no version '0009'; it has: 0001, 0002, 0003"):
        promote(store, "docs", "0009", "")
    assert current(store, "docs") == ""


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a\\b"])
def test_a_name_that_would_leave_the_store_is_refused(store, name):
    with pytest.raises(RagbenchError, match="cannot be the name"):
        add(store, name, packed)


def test_a_damaged_manifest_is_not_promoted(store):
    path = store / "docs" / "0002" / MANIFEST
    path.write_text(path.read_text().replace("both", "base"))
    with pytest.raises(RagbenchError, match=r"manifest\.json is not what was packed"):
        promote(store, "docs", "0002", "")
    assert current(store, "docs") == ""


def test_there_is_nothing_to_go_back_to_before_a_second_promotion(store):
    promote(store, "docs", "0001", "")
    with pytest.raises(RagbenchError, match="no earlier version of 'docs'"):
        roll_back(store, "docs")
    assert current(store, "docs") == "0001"


@given(st.lists(st.sampled_from(["0001", "0002", "0003", "back"]), max_size=12))
def test_going_back_undoes_promotions_one_by_one(tmp_path_factory, steps):
    store = tmp_path_factory.mktemp("store")
    for _ in range(3):
        add(store, "docs", packed)
    in_use: list[str] = []
    for step in steps:
        if step != "back":
            promote(store, "docs", step, "")
            in_use.append(step)
        elif len(in_use) > 1:
            in_use.pop()
            assert roll_back(store, "docs").after == in_use[-1]
        assert current(store, "docs") == (in_use[-1] if in_use else "")


def test_bundles_that_are_added_at_once_get_versions_of_their_own(store):
    found = []
    threads = [threading.Thread(target=lambda: found.append(add(store, "docs", packed)[0])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [f"{number:04d}" for number in range(4, 10)]


def test_a_crash_while_a_version_is_promoted_leaves_the_old_one_in_use(store, monkeypatch):
    promote(store, "docs", "0001", "")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            promote(store, "docs", "0002", "")
    assert current(store, "docs") == "0001"
    promote(store, "docs", "0003", "")
    assert roll_back(store, "docs").after == "0001"
