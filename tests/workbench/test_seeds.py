import pytest

from ragbench.errors import RagbenchError
from ragbench.files import write_json
from ragbench.workbench.seeds import parse_seeds, seed_folder, spread, write_spread


def evaluated(run, seed, differences):
    folder = seed_folder(run, seed) / "06_evaluation"
    folder.mkdir(parents=True)
    entries = [
        {"baseline": "base", "system": "both", "split": "test", "metric": metric, "difference": value,
         "ci": None if value is None else [value - 0.1, value + 0.1]}
        for metric, value in differences.items()
    ]  # fmt: skip
    write_json(folder / "metrics.json", {"comparisons": entries})


@pytest.fixture
def run(tmp_path):
    evaluated(tmp_path, 1, {"answer_f1": 0.1, "format": 0.5, "<b>": 0.0})
    evaluated(tmp_path, 2, {"answer_f1": 0.2, "format": None, "<b>": 0.0})
    evaluated(tmp_path, 3, {"answer_f1": 0.3, "format": 0.5, "<b>": 0.0})
    return tmp_path


def test_the_spread_between_seeds_stands_beside_the_interval_over_questions(run):
    rows = spread(run, [1, 2, 3])
    assert rows[0] == [
        "both against base", "test", "answer_f1", "+0.200", "+0.100 to +0.300", "0.100", "± 0.100"
    ]  # fmt: skip
    assert [row[2] for row in rows] == ["answer_f1", "<b>"]  # one seed could not compare the other


def test_the_page_links_every_seed_and_escapes(run):
    page = write_spread(run, [1, 2, 3]).read_text()
    assert 'href="seed-2/index.html"' in page and "+0.100 to +0.300" in page and "<b>" not in page


def test_seeds_are_a_list_of_different_whole_numbers():
    assert parse_seeds("1, 2,30") == [1, 2, 30]
    for text in ("1", "1,1", "1,x", "", "1.5,2"):
        with pytest.raises(RagbenchError, match="--seeds takes at least two different whole numbers"):
            parse_seeds(text)
