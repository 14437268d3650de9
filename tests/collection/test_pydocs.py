import builtins
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragbench.collection import embedded, pydocs
from ragbench.collection.pydocs import MAX_CHARS, read_passages
from ragbench.collection.pydocs_modules import FAMILIES, MODULES

read_anew = read_passages.__wrapped__


def supported_pythons():
    """The running Python, and the other versions beside it where pyenv or a hosted runner keeps several."""
    beside = sorted(Path(sys.base_prefix).resolve().parent.glob("*3.1[1-3]*/bin/python3"))
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = {own: sys.executable}
    for path in beside:
        done = subprocess.run([path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True)
        if done.returncode == 0:
            found.setdefault(done.stdout.decode().strip(), str(path))
    return found


PYTHONS = supported_pythons()


def words(text):
    return " ".join(text.split())


def resolve(name):
    """Find what a public name stands for: an attribute, or a module that nobody has imported yet."""
    path, *rest = name.split(".")
    value = importlib.import_module(path) if importlib.util.find_spec(path) else getattr(builtins, path)
    for part in rest:
        path += "." + part
        try:
            value = getattr(value, part) if hasattr(value, part) else inspect.getattr_static(value, part)
        except AttributeError:
            value = importlib.import_module(path)
    return value


@pytest.fixture(scope="module")
def by_name():
    found = defaultdict(list)
    for passage in read_passages():
        for name in passage.names:
            found[name].append(passage)
    return found


def test_there_are_some_thousand_passages_from_nearly_every_module():
    assert 3_500 <= len(read_passages()) <= 5_500
    documents = {passage.document for passage in read_passages()}
    assert len(documents & set(MODULES)) >= 0.95 * len(MODULES)
    assert sum(document.startswith("help:") for document in documents) >= 50


def test_no_module_is_in_two_families():
    assert [name for name, count in Counter(MODULES).items() if count > 1] == []
    assert set(MODULES) == {module for family in FAMILIES.values() for module in family}


def test_reading_again_gives_the_same():
    assert read_anew() == read_passages()


def test_the_surroundings_of_the_process_change_nothing(tmp_path, monkeypatch):
    interpreter = tmp_path / "elsewhere" / "python"
    interpreter.parent.mkdir()
    interpreter.symlink_to(Path(sys.executable).resolve())
    monkeypatch.setattr(sys, "executable", str(interpreter))
    monkeypatch.chdir(tmp_path)
    for name, value in {"PYTHONOPTIMIZE": "2", "PYTHONHASHSEED": "7", "LC_ALL": "C", "TZ": "Asia/Tokyo"}.items():
        monkeypatch.setenv(name, value)
    for name in ("HOME", "USER", "COLUMNS"):
        monkeypatch.setenv(name, str(tmp_path))
    (tmp_path / "random.py").write_text("raise SystemExit('a script of the user, not the library')")
    assert read_anew() == read_passages()


def test_what_notebooks_and_libraries_do_to_python_changes_nothing(monkeypatch):
    import torch  # noqa: F401  # it patches classes of the standard library
    from IPython.core.displayhook import DisplayHook

    def get_ipython():
        """Return the global interactive shell of this very session."""

    monkeypatch.setattr(builtins, "get_ipython", get_ipython, raising=False)
    monkeypatch.setattr(builtins, "DisplayHook", DisplayHook, raising=False)
    monkeypatch.setattr("random.sample.__func__.__doc__", "Something else that was patched in.")
    assert read_anew() == read_passages()


def test_no_address_in_memory_is_in_it():
    assert [passage.id for passage in read_passages() if re.search(r"\bat 0x[0-9a-fA-F]+", passage.text)] == []


def test_every_id_is_given_once_and_can_stand_in_a_qrels_file():
    ids = [passage.id for passage in read_passages()]
    assert len(set(ids)) == len(ids)
    assert [name for name in ids if re.search(r"[\s\[\]]", name)] == []


@pytest.fixture(scope="module")
def docstrings():
    """What every name of a docstring's passage stands for in a fresh interpreter; this one is patched by its tools."""
    names = [name for p in read_passages() if not p.document.startswith("help:") for name in p.names]
    program = [
        "import builtins, importlib.util, inspect, json, sys, warnings",
        inspect.getsource(resolve),
        "warnings.simplefilter('ignore')",
        "print(json.dumps({name: resolve(name).__doc__ for name in json.load(sys.stdin)}))",
    ]
    command = [sys.executable, "-I", "-S", "-c", "\n".join(program)]
    return json.loads(subprocess.run(command, input=json.dumps(names).encode(), capture_output=True, check=True).stdout)


def test_every_name_is_known_to_the_running_python_with_that_text(docstrings):
    whole = defaultdict(str)
    for passage in read_passages():
        whole[passage.title] += " " + passage.text
    wrong = []
    for passage in read_passages():
        named = [name for name in passage.names if name in docstrings]
        wrong += [name for name in named if words(docstrings[name]) not in words(whole[passage.title])]
    assert wrong == []


def test_each_distinct_docstring_is_one_passage(docstrings):
    titles = defaultdict(set)
    for passage in read_passages():
        if passage.title in docstrings:
            titles[words(docstrings[passage.title])].add(passage.title)
    assert len(titles) > 3_000
    assert [same for same in titles.values() if len(same) > 1] == []


def test_random_sample_is_known_by_both_its_names(by_name):
    (passage,) = by_name["random.sample"]
    assert by_name["random.Random.sample"] == [passage]
    assert set(passage.names) == {"random.sample", "random.Random.sample"}
    assert passage.document == "random"


@pytest.mark.parametrize(
    "name",
    ["concurrent.futures.wait", "concurrent.futures.as_completed", "os.path.splitext", "os.path.join", "asyncio.gather",
     "json.JSONDecodeError", "sqlite3.connect", "socket.gethostbyname", "unittest.skipIf", "secrets.compare_digest"],
)  # fmt: skip
def test_names_that_are_re_exported_are_known_by_the_name_people_use(by_name, name):
    assert resolve(name).__module__ != name.rpartition(".")[0]
    assert words(inspect.cleandoc(resolve(name).__doc__))[:60] in words(by_name[name][0].text)


@pytest.mark.parametrize(
    "name",
    ["len", "sorted", "str.split", "dict.setdefault", "bytes.fromhex", "os.listdir", "zlib.crc32", "math.isclose",
     "itertools.groupby", "collections.deque.rotate", "time.sleep", "array.array.frombytes", "sys.intern",
     "select.select", "struct.pack", "binascii.unhexlify", "unicodedata.normalize", "bisect.bisect_left"],
)  # fmt: skip
def test_functions_written_in_c_are_there(by_name, name):
    assert not inspect.isfunction(resolve(name))
    assert words(resolve(name).__doc__)[:40] in words(by_name[name][0].text)


def test_most_functions_in_c_of_the_math_and_os_modules_are_there(by_name):
    for module in (importlib.import_module("math"), os):
        native = [n for n, v in vars(module).items() if inspect.isbuiltin(v) and not n.startswith("_")]
        documented = [n for n in native if len((getattr(module, n).__doc__ or "").split()) >= 5]
        assert len(documented) > 30
        assert [n for n in documented if not by_name[f"{module.__name__}.{n}"]] == []


def test_a_signature_stands_before_the_text(by_name):
    assert by_name["shutil.copytree"][0].text.startswith("copytree(src, dst, symlinks=False, ignore=None, ")


def test_placeholders_and_private_names_are_left_out(by_name):
    assert [name for name in by_name if name.startswith(("str._", "dict._", "pathlib.Path._", "random.Random._"))] == []
    assert [p.id for p in read_passages() if re.search(r"^Alias for field number|^Helper for pickle", p.text)] == []


def test_a_long_topic_is_cut_into_pieces_that_hold_all_its_words(by_name):
    from pydoc_data.topics import topics

    pieces = by_name["help:formatstrings"]
    assert len(pieces) > 5
    assert [p.id for p in pieces] == [
        "help:formatstrings",
        *(f"help:formatstrings#{n + 2}" for n in range(len(pieces) - 1)),
    ]
    assert words(" ".join(p.text for p in pieces)) == words(topics["formatstrings"])


def test_no_passage_is_much_longer_than_the_limit():
    lengths = sorted(len(passage.text.split("\n", 1)[-1]) for passage in read_passages())
    assert lengths[-1] <= MAX_CHARS
    assert lengths[0] > 0


@given(st.lists(st.sampled_from(["word " * 40, "a line\n", "\n\n", "x" * 1500, "end. \n", " \n \n "]), max_size=60))
def test_cutting_keeps_every_word_and_the_limit(parts):
    text = "".join(parts)
    pieces = pydocs._pieces(text)
    assert words(" ".join(pieces)) == words(text)
    assert all(piece.strip() for piece in pieces)
    assert [piece for piece in pieces if len(piece) > MAX_CHARS and "\n" in piece] == []


# inspect raises the third for select.epoll.register on Python 3.13.
@pytest.mark.parametrize("error", [TypeError, ValueError, AttributeError])
def test_a_signature_that_cannot_be_read_is_left_out(error):
    class Broken:
        """Do something that takes a few words to say."""

    def read(value):
        raise error("no signature")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pydocs.inspect, "signature", read)
        assert [entry.signature for entry in pydocs._entry("m.broken", "m", Broken())] == [""]


def test_defaults_that_print_an_address_print_without_it():
    def function(plain=object(), made=lambda: None, listed=[object()], number=0x10):  # noqa: B006, B008
        """Do something that takes a few words to say."""

    (entry,) = pydocs._entry("m.function", "m", function)
    assert " at 0x" not in entry.signature
    assert entry.signature == "function(plain=..., made=..., listed=[...], number=16)"


@pytest.mark.parametrize("version", PYTHONS)
def test_every_supported_python_gives_the_corpus_and_keeps_nearly_all_questions(version, monkeypatch):
    monkeypatch.setattr(sys, "executable", PYTHONS[version])
    passages = read_anew()
    assert 3_500 <= len(passages) <= 5_500
    assert len({passage.id for passage in passages}) == len(passages)
    assert [p.id for p in passages if " at 0x" in p.text or sys.executable in p.text] == []
    monkeypatch.setattr(embedded, "read_passages", lambda: passages)
    kept = {split: len(qrels) for split, qrels in embedded.embedded_collection().qrels.items()}
    assert kept["train"] >= 1_050
    assert kept["dev"] >= 80
    assert kept["test"] >= 220
    assert kept["ood"] >= 90
