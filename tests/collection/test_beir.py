import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragbench.collection.beir import read_collection, write_collection
from ragbench.collection.load import fingerprint, load_collection
from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.errors import RagbenchError

HEADER = "query-id\tcorpus-id\tscore\n"
IDS = st.text(min_size=1, max_size=6).filter(lambda text: not any(character.isspace() for character in text))
TEXTS = st.text(max_size=12)


@st.composite
def collections(draw):
    ids = draw(st.lists(IDS, min_size=1, max_size=5, unique=True))
    corpus = corpus_from_rows([(name, draw(TEXTS), draw(TEXTS), draw(TEXTS)) for name in ids], batch_size=2)
    queries, qrels = {}, {}
    for query_id in draw(st.lists(IDS, min_size=1, max_size=5, unique=True)):
        split = draw(st.sampled_from(["train", "test", "v1.2", "überall"]))
        gold = draw(st.dictionaries(st.sampled_from(ids), st.integers(-2, 3), max_size=3))
        text = draw(TEXTS.filter(str.strip))
        answer = draw(st.none() | TEXTS)
        if gold:
            groups = st.lists(st.lists(st.sampled_from(sorted(gold)), min_size=1, max_size=2).map(tuple), max_size=2)
            tags = tuple(draw(st.lists(TEXTS, max_size=2)))
            queries[query_id] = Query(query_id, text, answer, tags, tuple(draw(groups)))
        else:
            queries[query_id] = Query(query_id, text, answer, ("unanswerable",), (), split)
        qrels.setdefault(split, {})[query_id] = gold
    return Collection("any", corpus, queries, qrels)


def content(collection):
    return collection.corpus.to_list(), collection.queries, collection.qrels


@settings(max_examples=60, deadline=None)
@given(collections())
def test_what_is_written_is_read_back_the_same(collection):
    with tempfile.TemporaryDirectory() as folder:
        write_collection(collection, Path(folder))
        first = read_collection(Path(folder))
        assert content(first) == content(collection)
        assert fingerprint(first) == fingerprint(collection)


def test_reading_and_writing_a_folder_changes_nothing(toy_folder, tmp_path):
    first = read_collection(toy_folder)
    write_collection(first, tmp_path / "again")
    assert content(read_collection(tmp_path / "again")) == content(first)
    assert (tmp_path / "again" / "corpus.jsonl").read_text() == (toy_folder / "corpus.jsonl").read_text()
    assert (tmp_path / "again" / "qrels" / "test.tsv").read_text() == (toy_folder / "qrels" / "test.tsv").read_text()


def test_reading_keeps_what_the_files_say(toy_folder):
    collection = read_collection(toy_folder)
    assert collection.corpus[1] == {
        "_id": "p2", "title": "Dogs", "text": "Dogs bark at night.", "document_id": "d-p2"
    }  # fmt: skip
    assert collection.qrels == {"train": {"q1": {"p1": 1}}, "test": {"q2": {"p2": 1, "p3": 1}, "q3": {}}}
    assert collection.queries["q2"] == Query(
        "q2", "Who barks and who swims?", "Dogs bark, fish swim. [p2] [p3]", ("multi",), (("p2",), ("p3",))
    )
    assert collection.name == "toy"


def test_a_plain_beir_folder_opens(tmp_path):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "4983", "text": "Microstructural development"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "0", "text": "0-dimensional biomaterials", "metadata": {}}\n')
    (tmp_path / "qrels" / "test.tsv").write_text(HEADER + "0\t4983\t2\n")
    collection = read_collection(tmp_path)
    assert collection.corpus[0]["document_id"] == "4983"
    assert collection.corpus[0]["title"] == ""
    assert collection.queries["0"] == Query("0", "0-dimensional biomaterials")
    assert collection.qrels == {"test": {"0": {"4983": 2}}}


def test_byte_order_marks_windows_line_ends_and_blank_lines_do_no_harm(toy_folder):
    expected = content(read_collection(toy_folder))
    for path in [*toy_folder.glob("*.jsonl"), *toy_folder.glob("qrels/*.tsv")]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert content(read_collection(toy_folder)) == expected


def test_a_last_line_without_its_line_end_counts(toy_folder):
    expected = content(read_collection(toy_folder))
    for path in [*toy_folder.glob("*.jsonl"), *toy_folder.glob("qrels/*.tsv")]:
        path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert content(read_collection(toy_folder)) == expected


def test_unusual_line_separators_inside_a_text_are_no_line_ends(toy_folder):
    with (toy_folder / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"_id": "p5", "text": "one\u2028two\u0085three\x7f"}\n')
    assert read_collection(toy_folder).corpus[4]["text"] == "one\u2028two\u0085three\x7f"


def test_absent_and_null_optional_fields_mean_the_same(toy_folder):
    with (toy_folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "p5", "title": null, "text": "x", "metadata": {"document_id": null}}\n')
        file.write('{"_id": "p6", "text": "x", "metadata": null}\n')
    with (toy_folder / "queries.jsonl").open("a") as file:
        file.write('{"_id": "q4", "text": "x", "answer": null, "metadata": {"tags": null, "needs": null}}\n')
    collection = read_collection(toy_folder)
    assert collection.corpus[4] == {"_id": "p5", "title": "", "text": "x", "document_id": "p5"}
    assert collection.corpus[5] == {"_id": "p6", "title": "", "text": "x", "document_id": "p6"}
    assert collection.queries["q4"] == Query("q4", "x")


def test_splits_come_in_their_natural_order(toy_folder):
    for split in ("ood", "dev", "extra"):
        shutil.copy(toy_folder / "qrels" / "train.tsv", toy_folder / "qrels" / f"{split}.tsv")
    assert list(read_collection(toy_folder).qrels) == ["train", "dev", "test", "ood", "extra"]


def test_a_split_of_unanswerable_questions_alone_is_legal(toy_folder):
    (toy_folder / "qrels" / "test.tsv").write_text(HEADER)
    assert read_collection(toy_folder).qrels["test"] == {"q3": {}}


# What is added to the end of a file, and what the error says; the line is the one that was added first.
APPENDED = {
    "passage not utf-8": ("corpus.jsonl", b'{"_id": "p5", "text": "caf\xe9"}', "not UTF-8"),
    "query not utf-8": ("queries.jsonl", b'{"_id": "q4", "text": "caf\xe9"}', "not UTF-8"),
    "qrels not utf-8": ("qrels/train.tsv", b"q1\tcaf\xe9\t1", "not UTF-8"),
    "passage no json": ("corpus.jsonl", b'{"_id": "p5", "text": "x"', "not JSON"),
    "query no json": ("queries.jsonl", b"{'_id': 'q4'}", "not JSON"),
    "two objects on a line": ("corpus.jsonl", b'{"_id": "p5", "text": ""} {"_id": "p6", "text": ""}', "not JSON"),
    "number too long to read": ("corpus.jsonl", b'{"_id": "p5", "text": "x", "n": ' + b"9" * 5000 + b"}", "JSON"),
    "nested too deep to read": ("corpus.jsonl", b'{"_id": "p5", "text": "x", "n": ' + b"[" * 100_000, "JSON"),
    "no object": ("corpus.jsonl", b'["p5", "x"]', "expected a JSON object, found list"),
    "passage without id": ("corpus.jsonl", b'{"text": "x"}', "'_id' is missing"),
    "passage without text": ("corpus.jsonl", b'{"_id": "p5", "title": "x"}', "'text' is missing"),
    "query without id": ("queries.jsonl", b'{"text": "x"}', "'_id' is missing"),
    "query without text": ("queries.jsonl", b'{"_id": "q4"}', "'text' is missing"),
    "query with blank text": ("queries.jsonl", b'{"_id": "q4", "text": " \\n"}', "'q4' has an empty text"),
    "id a number": ("corpus.jsonl", b'{"_id": 5, "text": "x"}', "'_id' must be a string, found 5"),
    "text a list": ("corpus.jsonl", b'{"_id": "p5", "text": ["x"]}', "'text' must be a string"),
    "title a number": ("corpus.jsonl", b'{"_id": "p5", "title": 1, "text": "x"}', "'title' must be a string"),
    "document a number": ("corpus.jsonl", b'{"_id":"p","text":"x","metadata":{"document_id":1}}', "'document_id' must"),
    "answer a list": ("queries.jsonl", b'{"_id": "q4", "text": "x", "answer": ["y"]}', "'answer' must be a string"),
    "metadata a string": ("queries.jsonl", b'{"_id":"q4","text":"x","metadata":"y"}', "'metadata' must be an object"),
    "tags a string": ("queries.jsonl", b'{"_id":"q4","text":"x","metadata":{"tags":"lay"}}', "'metadata.tags' must be"),
    "needs flat": ("queries.jsonl", b'{"_id":"q4","text":"x","metadata":{"needs":["p1"]}}', "'metadata.needs' must be"),
    "half a character": ("corpus.jsonl", b'{"_id": "p5", "text": "\\ud83d"}', "half of a surrogate pair"),
    "half in a tag": ("queries.jsonl", b'{"_id":"q4","text":"x","metadata":{"tags":["\\ud83d"]}}', "surrogate"),
    "id with a space": ("corpus.jsonl", b'{"_id": "p 5", "text": "x"}', "'p 5' must be a non-empty string without"),
    "id with a tab": ("queries.jsonl", b'{"_id": "q\\t4", "text": "x"}', "without white space"),
    "id with a no-break space": ("corpus.jsonl", b'{"_id": "p\\u00a05", "text": "x"}', "without white space"),
    "empty id": ("queries.jsonl", b'{"_id": "", "text": "x"}', "non-empty string"),
    "passage twice": ("corpus.jsonl", b'{"_id": "p2", "text": "x"}', "'p2' stands already on line 2"),
    "query twice": ("queries.jsonl", b'{"_id": "q3", "text": "x"}', "'q3' stands already on line 3"),
    "pair twice": ("qrels/train.tsv", b"q1\tp1\t2", "'q1', 'p1' stands in the file already"),
    "qrels to no query": ("qrels/train.tsv", b"q9\tp1\t1", "the query 'q9' is not in queries.jsonl"),
    "qrels to no passage": ("qrels/train.tsv", b"q1\tp9\t1", "the passage 'p9' is not in corpus.jsonl"),
    "score with a point": ("qrels/train.tsv", b"q1\tp2\t1.0", "'1.0' is no integer"),
    "score a word": ("qrels/train.tsv", b"q1\tp2\thigh", "'high' is no integer"),
    "score empty": ("qrels/train.tsv", b"q1\tp2\t", "'' is no integer"),
    "score with an underscore": ("qrels/train.tsv", b"q1\tp2\t1_0", "'1_0' is no integer"),
    "two fields": ("qrels/train.tsv", b"q1\tp2", "expected 3 fields with tabs between, found 2"),
    "trec columns": ("qrels/train.tsv", b"q1 0 p2 1", "expected 3 fields with tabs between, found 1"),
    "unanswerable without split": (
        "queries.jsonl",
        b'{"_id": "q4", "text": "x", "metadata": {"tags": ["unanswerable"]}}',
        "'q4' is tagged unanswerable and has no 'metadata.split'",
    ),
    "unanswerable in no split": (
        "queries.jsonl",
        b'{"_id": "q4", "text": "x", "metadata": {"tags": ["unanswerable"], "split": "dev"}}',
        "the split 'dev' has no file in qrels/",
    ),
}


@pytest.mark.parametrize("case", APPENDED)
def test_a_broken_line_is_an_error_with_file_and_line(toy_folder, case):
    name, added, says = APPENDED[case]
    path = toy_folder / name
    line = path.read_bytes().count(b"\n") + 1
    path.write_bytes(path.read_bytes() + added + b"\n" + b"\n")
    with pytest.raises(RagbenchError) as caught:
        read_collection(toy_folder)
    assert f"{path}, line {line}: " in str(caught.value)
    assert says in str(caught.value)


def test_needs_that_the_qrels_do_not_list_are_an_error_with_file_and_line(toy_folder):
    path = toy_folder / "queries.jsonl"
    path.write_text(path.read_text().replace('[["p2"], ["p3"]]', '[["p2"], ["p3", "p4"]]'))
    with pytest.raises(RagbenchError) as caught:
        read_collection(toy_folder)
    assert f"{path}, line 2: 'needs' names 'p4', which the qrels do not list for 'q2'" in str(caught.value)


def test_a_passage_id_that_comes_twice_is_found_across_batches(toy_folder):
    lines = [json.dumps({"_id": f"p{i}", "text": "x"}) for i in range(1, 10_100)]
    (toy_folder / "corpus.jsonl").write_text("\n".join([*lines, lines[6]]) + "\n")
    with pytest.raises(RagbenchError, match=r"corpus\.jsonl, line 10100: the id 'p7' stands already on line 7\."):
        read_collection(toy_folder)


def test_the_line_counts_blank_lines_too(toy_folder):
    path = toy_folder / "corpus.jsonl"
    path.write_text("\n\n" + path.read_text() + "\n{\n")
    with pytest.raises(RagbenchError, match=r"corpus\.jsonl, line 8: not JSON"):
        read_collection(toy_folder)


@pytest.mark.parametrize("first", ["", "q1\tp1\t1\n", "query-id,corpus-id,score\n", "query-id\tcorpus-id\n"])
def test_qrels_without_their_header_are_an_error_on_line_1(toy_folder, first):
    path = toy_folder / "qrels" / "train.tsv"
    path.write_text(first + "q1\tp1\t1\n")
    with pytest.raises(RagbenchError) as caught:
        read_collection(toy_folder)
    assert f"{path}, line 1: expected the header ['query-id', 'corpus-id', 'score']" in str(caught.value)


@pytest.mark.parametrize("nothing", ["", "\n\n", "\ufeff"])
def test_a_corpus_without_passages_is_an_error_that_names_the_file(toy_folder, nothing):
    (toy_folder / "corpus.jsonl").write_text(nothing, encoding="utf-8")
    with pytest.raises(RagbenchError) as caught:
        read_collection(toy_folder)
    assert str(caught.value) == f"{toy_folder / 'corpus.jsonl'} holds no passage."


@pytest.mark.parametrize("nothing", ["", HEADER, HEADER + "\n"])
def test_a_split_without_queries_is_an_error_that_names_the_file(toy_folder, nothing):
    (toy_folder / "qrels" / "dev.tsv").write_text(nothing)
    with pytest.raises(RagbenchError) as caught:
        read_collection(toy_folder)
    assert f"{toy_folder / 'qrels' / 'dev.tsv'}: the split has no queries" in str(caught.value)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels"])
def test_a_missing_part_is_named_with_the_layout(toy_folder, name):
    (toy_folder / name).rename(toy_folder / "elsewhere")
    with pytest.raises(RagbenchError) as caught:
        read_collection(toy_folder)
    assert f"{toy_folder / name} is missing. A collection is a folder with corpus.jsonl" in str(caught.value)


def test_a_folder_without_any_split_is_an_error(toy_folder):
    for path in (toy_folder / "qrels").iterdir():
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(RagbenchError, match=r"qrels holds no SPLIT\.tsv file"):
        read_collection(toy_folder)


def test_a_relative_path_starts_at_the_root(toy_folder):
    assert load_collection("toy", root=toy_folder.parent).name == "toy"
    assert load_collection(str(toy_folder)).qrels == read_collection(toy_folder).qrels


def test_a_folder_that_is_not_there_is_an_error_that_says_what_to_give(tmp_path):
    with pytest.raises(RagbenchError, match=r"Collection 'nowhere': there is no folder .*Give 'pydocs' or a folder"):
        load_collection("nowhere", root=tmp_path)


def test_the_fingerprint_does_not_depend_on_the_place(toy_folder, tmp_path):
    shutil.copytree(toy_folder, tmp_path / "other" / "name")
    assert fingerprint(read_collection(tmp_path / "other" / "name")) == fingerprint(read_collection(toy_folder))


def test_the_fingerprint_does_not_depend_on_how_the_corpus_is_cut_into_batches():
    rows = [(f"p{i}", "title", f"text {i}", "d") for i in range(10)]
    prints = {fingerprint(Collection("c", corpus_from_rows(rows, size), {}, {})) for size in (1, 3, 10, 100)}
    assert len(prints) == 1


def test_the_fingerprint_does_not_depend_on_the_order_of_qrels_lines(toy_folder):
    before = fingerprint(read_collection(toy_folder))
    (toy_folder / "qrels" / "test.tsv").write_text(HEADER + "q2\tp3\t1\nq2\tp2\t1\n")
    assert fingerprint(read_collection(toy_folder)) == before


CHANGES = {
    "passage text": ("corpus.jsonl", "Cats sleep all day.", "Cats sleep all night."),
    "passage title": ("corpus.jsonl", '"title": "Cats"', '"title": "Cat"'),
    "passage id": ("corpus.jsonl", '"p4"', '"p5"'),
    "document": ("corpus.jsonl", '"d-p4"', '"d-p3"'),
    "query text": ("queries.jsonl", "Who barks", "Who yaps"),
    "query id": ("queries.jsonl", '"q3"', '"q4"'),
    "answer": ("queries.jsonl", "They sleep.", "They eat."),
    "no answer": ("queries.jsonl", '"They sleep. [p1]"', "null"),
    "tags": ("queries.jsonl", '"tags": []', '"tags": ["lay"]'),
    "needs": ("queries.jsonl", '[["p2"], ["p3"]]', '[["p2", "p3"]]'),
    "score": ("qrels/test.tsv", "q2\tp3\t1", "q2\tp3\t2"),
    "gold": ("qrels/train.tsv", "q1\tp1\t1", "q1\tp4\t1"),
    "split of a question": ("queries.jsonl", '"split": "test"', '"split": "train"'),
    "text moved to the title": ("corpus.jsonl", '"title": "Cats", "text": "Cats', '"title": "Cats Cats", "text": "'),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_changes_with_the_content(toy_folder, change):
    before = fingerprint(read_collection(toy_folder))
    name, old, new = CHANGES[change]
    text = (toy_folder / name).read_text()
    assert text.count(old) == 1
    (toy_folder / name).write_text(text.replace(old, new))
    assert fingerprint(read_collection(toy_folder)) != before


def bare(folder: Path) -> Path:
    """Leave nothing but the corpus in a collection's folder."""
    shutil.rmtree(folder / "qrels")
    (folder / "queries.jsonl").unlink()
    return folder


def test_a_corpus_alone_is_a_collection_without_questions(toy_folder):
    whole = read_collection(toy_folder)
    collection = read_collection(bare(toy_folder))
    assert content(collection) == (whole.corpus.to_list(), {}, {})
    assert collection.name == "toy"
    assert fingerprint(collection) != fingerprint(whole)


def test_a_collection_without_questions_is_written_and_read_back_the_same(toy_folder, tmp_path):
    collection = read_collection(bare(toy_folder))
    write_collection(collection, tmp_path / "again")
    assert [path.name for path in (tmp_path / "again").iterdir()] == ["corpus.jsonl"]
    again = read_collection(tmp_path / "again")
    assert content(again) == content(collection)
    assert fingerprint(again) == fingerprint(collection)


@pytest.mark.parametrize("name", ["queries.jsonl", "qrels"])
def test_an_empty_half_of_the_questions_is_no_collection_without_questions(toy_folder, name):
    bare(toy_folder)
    (toy_folder / name).mkdir() if name == "qrels" else (toy_folder / name).write_text("")
    with pytest.raises(RagbenchError, match="is missing"):
        read_collection(toy_folder)


@pytest.mark.parametrize(
    ("added", "says"),
    [
        ("{broken", r"corpus\.jsonl, line 5: not JSON"),
        ('{"_id": "p2", "text": "x"}', r"corpus\.jsonl, line 5: the id 'p2' stands already on line 2"),
    ],
)
def test_a_corpus_alone_is_checked_line_by_line_too(toy_folder, added, says):
    with (bare(toy_folder) / "corpus.jsonl").open("a") as file:
        file.write(added + "\n")
    with pytest.raises(RagbenchError, match=says):
        read_collection(toy_folder)
