import os
import signal
import subprocess
import sys
import time

import pytest

from ragbench import cache
from ragbench.errors import RagbenchError

A, B, C = (f"{number:064x}" for number in (10, 11, 12))


def test_what_was_put_is_got_and_the_rest_is_absent():
    cache.put("things", {A: b"one", B: b""})
    assert dict(cache.get("things", [A, B, C])) == {A: b"one", B: b""}
    assert cache.contains("things", [A, C]) == {A}


def test_an_empty_cache_holds_nothing():
    assert list(cache.get("things", [A])) == []
    assert cache.contains("things", []) == set()


def test_the_first_value_of_a_key_stays():
    cache.put("things", {A: b"first"})
    cache.put("things", {A: b"second", B: b"new"})
    assert dict(cache.get("things", [A, B])) == {A: b"first", B: b"new"}


def test_caches_are_apart_by_name():
    cache.put("things", {A: b"thing"})
    assert cache.contains("others", [A]) == set()


def test_thousands_of_keys_are_found_in_one_call():
    entries = {f"{number:064x}": str(number).encode() for number in range(2345)}
    cache.put("things", entries)
    wanted = [*entries, *(f"{number:064x}" for number in range(9000, 9999)), next(iter(entries))]
    assert dict(cache.get("things", wanted)) == entries
    assert cache.contains("things", wanted) == set(entries)
    assert len(list(cache.get("things", wanted))) == 2345


WRITER = """
import sys
import time
from ragbench import cache
name = sys.argv[1]
for number in range(int(sys.argv[2])):
    cache.put("shared", {f"{number:064x}": name.encode() * 9, f"{ord(name):02x}{number:062x}": b"own"})
    print(number, flush=True)
"""


def writer(name, count):
    command = [sys.executable, "-c", WRITER, name, str(count)]
    return subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_processes_write_at_once_and_each_key_keeps_one_whole_value():
    writers = [writer(name, 150) for name in "xy"]
    errors = [process.communicate()[1] for process in writers]
    assert [process.returncode for process in writers] == [0, 0], errors
    shared = dict(cache.get("shared", [f"{number:064x}" for number in range(150)]))
    assert len(shared) == 150 and set(shared.values()) <= {b"x" * 9, b"y" * 9}
    own = [f"{ord(name):02x}{number:062x}" for name in "xy" for number in range(150)]
    assert cache.contains("shared", own) == set(own)


OPENER = """
import sys, time
from ragbench import cache
print("ready", flush=True)
start = float(sys.stdin.readline())
for number in range(25):
    while time.time() < start + number / 20:
        pass
    cache.put(f"new{number}", {sys.argv[1] * 64: b"1"})
"""


def test_a_new_cache_may_be_opened_by_several_processes_at_once():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    openers = [subprocess.Popen([sys.executable, "-c", OPENER, key], **pipes) for key in "abcd"]
    assert [process.stdout.readline() for process in openers] == ["ready\n"] * 4
    start = time.time() + 0.5
    for process in openers:
        process.stdin.write(f"{start}\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=90)[1] for process in openers]
    assert [process.returncode for process in openers] == [0] * 4, errors
    assert all(len(cache.contains(f"new{number}", [key * 64 for key in "abcd"])) == 4 for number in range(25))


def test_what_was_put_before_a_kill_is_there_and_the_file_is_sound():
    process = writer("x", 100_000)
    for line in process.stdout:
        if int(line) == 20:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    reached = [f"{number:064x}" for number in range(21)]
    assert dict(cache.get("shared", reached)) == dict.fromkeys(reached, b"x" * 9)
    cache.put("shared", {C[::-1]: b"after"})
    assert cache.contains("shared", [C[::-1]])


@pytest.mark.parametrize("use", [lambda: list(cache.get("things", [A])), lambda: cache.put("things", {B: b"2"})])
def test_a_damaged_file_says_how_to_get_rid_of_it(own_cache, use):
    own_cache.mkdir()
    (own_cache / "things.sqlite").write_bytes(b"this is no database, whatever its name says " * 99)
    with pytest.raises(RagbenchError, match=r"things\.sqlite.*ragbench cache clear things"):
        use()
    cache.clear("things")
    cache.put("things", {A: b"again"})
    assert cache.contains("things", [A]) == {A}


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RAGBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(RagbenchError, match="RAGBENCH_CACHE"):
        cache.put("things", {A: b"one"})


def test_sizes_are_those_of_the_files(own_cache):
    assert cache.sizes() == {}
    cache.put("things", {A: b"x" * 50_000})
    cache.put("others", {A: b"x"})
    (own_cache / "models" / "some").mkdir(parents=True)
    (own_cache / "models" / "some" / "weights").write_bytes(b"x" * 1234)
    sizes = cache.sizes()
    assert list(sizes) == ["models", "others", "things"] and sizes["models"] == 1234
    assert sizes["things"] == sum(path.stat().st_size for path in own_cache.glob("things.sqlite*")) > 50_000


def test_clearing_one_part_leaves_the_others(own_cache):
    cache.put("things", {A: b"x" * 50_000})
    cache.put("others", {A: b"kept"})
    expected = cache.sizes()["things"]
    assert cache.clear("things") == expected
    assert list(cache.sizes()) == ["others"] and dict(cache.get("others", [A])) == {A: b"kept"}


def test_clearing_everything_empties_the_folder(own_cache):
    cache.put("things", {A: b"x"})
    (own_cache / "models").mkdir()
    (own_cache / "models" / "weights").write_bytes(b"x" * 99)
    total = sum(cache.sizes().values())
    assert cache.clear() == total > 99
    assert cache.sizes() == {} and list(own_cache.iterdir()) == []


def test_clearing_does_not_touch_a_cache_whose_name_begins_alike():
    cache.put("things", {A: b"x"})
    cache.put("things2", {A: b"kept"})
    cache.clear("things")
    assert list(cache.sizes()) == ["things2"]


def test_clearing_an_unknown_part_names_those_there_are():
    cache.put("things", {A: b"x"})
    with pytest.raises(RagbenchError, match=r"'nothing'.*things"):
        cache.clear("nothing")


def test_the_folder_follows_the_environment_else_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("RAGBENCH_CACHE", "~/my cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "my cache"
    monkeypatch.delenv("RAGBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder().name == "ragbench"
