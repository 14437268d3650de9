import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragbench import files
from ragbench.files import (
    atomic_path,
    sha256_file,
    sha256_folder,
    sha256_remembered,
    sha256_text,
    write_json,
    write_text,
)

STRINGS = st.lists(st.text(alphabet=st.characters(exclude_categories=[]), max_size=5), max_size=4)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "result.txt"
    write_text(target, "old")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:
        temporary.write_text("half of the new")
        raise ZeroDivisionError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_target_is_untouched_until_the_block_ends(tmp_path):
    target = tmp_path / "result.txt"
    write_text(target, "old")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "result.txt"
    write_text(target, "old")
    program = (
        "import os, signal, sys; from pathlib import Path; from ragbench.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == "old"


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_written_files_have_the_rights_of_any_new_file(tmp_path, umask, expected):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "shared.txt", "for colleagues")
        assert stat.S_IMODE((tmp_path / "shared.txt").stat().st_mode) == expected
        assert os.umask(umask) == umask
    finally:
        os.umask(before)


def test_missing_folders_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "c.txt", "x")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "x"


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\r\n")))
def test_text_is_written_as_utf_8(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "utf8.txt"
    write_text(path, text)
    assert path.read_bytes() == text.encode("utf-8")


def test_json_comes_back_and_is_readable_by_people(tmp_path):
    value = {"naïve": ["日本", 0.1, None, True], "b": {"c": -3}}
    write_json(tmp_path / "v.json", value)
    content = (tmp_path / "v.json").read_text(encoding="utf-8")
    assert json.loads(content) == value
    assert "日本" in content
    assert content.endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), [float("inf")]])
def test_json_refuses_what_is_not_json_and_keeps_the_old_file(tmp_path, value):
    write_json(tmp_path / "v.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "v.json", value)
    assert [path.read_text() for path in tmp_path.glob("**/*.json")] == ["1\n"]


def test_the_hash_of_a_file_is_the_sha_256_of_its_bytes(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "data.bin").write_bytes(data)
    assert sha256_file(tmp_path / "data.bin") == hashlib.sha256(data).hexdigest()


@given(STRINGS, STRINGS)
def test_lists_of_strings_hash_alike_just_when_they_are_equal(one, other):
    assert (sha256_text(*one) == sha256_text(*other)) == (one == other)


def test_parts_cannot_flow_into_each_other():
    digests = {sha256_text(*parts) for parts in [(), ("",), ("", ""), ("ab", "c"), ("a", "bc"), ("abc",), ("c", "ab")]}
    assert len(digests) == 7


@pytest.fixture
def folder(tmp_path):
    write_text(tmp_path / "one" / "a.txt", "first")
    write_text(tmp_path / "one" / "sub" / "b.json", "second")
    return tmp_path / "one"


def test_the_hash_of_a_folder_ignores_where_and_when_it_was_written(folder):
    before = sha256_folder(folder)
    shutil.copytree(folder, folder.parent / "two")
    os.utime(folder.parent / "two" / "a.txt", (0, 0))
    assert sha256_folder(folder.parent / "two") == before


@pytest.mark.parametrize(
    "change",
    [
        lambda f: (f / "a.txt").write_text("FIRST"),
        lambda f: (f / "a.txt").rename(f / "c.txt"),
        lambda f: (f / "sub" / "b.json").rename(f / "b.json"),
        lambda f: (f / "a.txt").unlink(),
        lambda f: (f / "new").write_text(""),
        lambda f: [(f / "x").write_text("second"), (f / "sub" / "b.json").write_text("first")],
    ],
    ids=["content", "name", "place", "gone", "new", "swapped"],
)
def test_the_hash_of_a_folder_sees_every_change(folder, change):
    before = sha256_folder(folder)
    change(folder)
    assert sha256_folder(folder) != before


def test_the_hash_of_a_folder_can_be_limited_to_some_files(folder):
    before = sha256_folder(folder, ("**/*.json",))
    (folder / "a.txt").write_text("changed")
    assert sha256_folder(folder, ("**/*.json",)) == before
    (folder / "sub" / "b.json").write_text("changed")
    assert sha256_folder(folder, ("**/*.json",)) != before


def test_patterns_that_overlap_count_a_file_once(folder):
    assert sha256_folder(folder, ("**/*", "*.txt", "**/*.json")) == sha256_folder(folder)


def test_a_remembered_file_is_read_again_when_it_was_written_or_replaced(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(files, "sha256_file", lambda path: read.append(path) or sha256_file(path))
    target, other = tmp_path / "model.safetensors", tmp_path / "other"
    target.write_bytes(b"old weights")
    first = sha256_remembered(target)
    assert sha256_remembered(target) == first == sha256_file(target)
    assert read == [target]
    target.write_bytes(b"new weights")
    os.utime(target, ns=(0, 0))
    assert sha256_remembered(target) == sha256_file(target) != first
    other.write_bytes(b"odd weights")
    os.utime(other, ns=(0, 0))
    other.replace(target)
    assert sha256_remembered(target) == sha256_file(target)
    assert read == [target] * 3
