import ast
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from papermill.iorw import read_yaml_file

from ragbench.errors import RagbenchError
from ragbench.workbench.params import Parameter, declared, declared_in, read_params_file, stage_values
from ragbench.workbench.project import STAGES, notebook_path

PROJECT = Path(__file__).parents[2]
PARAMS_FILES = sorted((PROJECT / "params").glob("*.yaml"))
CELL = """\
seed: int = 13  # where randomness starts
rate: float = 0.5  # how fast
names: list[str] = ["a", "b"]  # several of them
model: str = "base"  # which one
limit: int | None = None  # at most so many
quick: bool = False  # skip the slow part
"""


def write_notebook(path: Path, *cells: str) -> Path:
    tagged = [nbformat.v4.new_code_cell(cell, metadata={"tags": ["parameters"]}) for cell in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[*tagged, nbformat.v4.new_code_cell("print(1)")]), path)
    return path


@pytest.fixture
def known(tmp_path) -> dict[str, Parameter]:
    return declared_in(write_notebook(tmp_path / "01_audit.ipynb", CELL))


@pytest.fixture
def params_file(tmp_path) -> Path:
    return tmp_path / "experiment.yaml"


@pytest.mark.parametrize("stage", STAGES)
def test_papermill_reads_the_same_names_types_and_defaults_from_a_notebook(stage):
    ours = declared_in(notebook_path(PROJECT, stage))
    theirs = papermill.inspect_notebook(str(notebook_path(PROJECT, stage)))
    assert list(ours) == list(theirs)
    for name, parameter in ours.items():
        assert ast.literal_eval(theirs[name]["default"]) == parameter.default
        assert theirs[name]["inferred_type_name"] == parameter.annotation
        assert theirs[name]["help"] == parameter.help


def test_a_parameter_knows_all_the_notebooks_that_use_it():
    known = declared(PROJECT)
    assert known["seed"].stages == STAGES
    assert known["audit_questions"].stages == ("01_audit",)
    assert known["evaluation_questions"].stages == ("06_evaluation",)


@pytest.mark.parametrize(
    "other",
    [
        "seed: int = 14  # where randomness starts",
        "seed: float = 13  # where randomness starts",
        "seed: int = 13  # something else",
    ],
)
def test_a_name_that_two_notebooks_declare_differently_is_an_error(tmp_path, other):
    write_notebook(tmp_path / "notebooks" / "01_audit.ipynb", "seed: int = 13  # where randomness starts")
    write_notebook(tmp_path / "notebooks" / "06_evaluation.ipynb", other)
    with pytest.raises(RagbenchError, match=r"'seed' is declared differently in 01_audit and 06_evaluation"):
        declared(tmp_path, ["01_audit", "06_evaluation"])


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("seed: int = 13", "line 1: 'seed' has no trailing comment"),
        ("seed: int = 13  #  ", "line 1: 'seed' has no trailing comment"),
        ("seed: int = 6 + 7  # s", "line 1: the default of 'seed' is no literal"),
        ("seed: int = int('7')  # s", "line 1: the default of 'seed' is no literal"),
        ("seed: dict = {[]: 1}  # s", "line 1: the default of 'seed' is no literal"),
        ("rate: float = 1.0  # r\nseed = 13  # s", "line 2: expected `name: type = literal  # help`"),
        ("seed: int  # s", "line 1: expected `name: type = literal  # help`"),
        ("import os  # s", "line 1: expected `name: type = literal  # help`"),
        ("seed: Path = 'a'  # s", "line 1: the type 'Path' of 'seed' is not made of int, float"),
        ("seed: int = 'a'  # s", "line 1: 'seed' must be int, found 'a'"),
        ("rate: float = 1.0  # r\nseed: int = = 3  # s", "parameters cell, line 2"),
        ("names: list[str] = [  # s", "parameters cell, line 1"),
    ],
)
def test_an_error_in_the_parameters_cell_names_the_line(tmp_path, cell, message):
    path = write_notebook(tmp_path / "01_audit.ipynb", cell)
    with pytest.raises(RagbenchError) as error:
        declared_in(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("cells", [(), (CELL, "more: int = 1  # m")])
def test_a_notebook_has_exactly_one_parameters_cell(tmp_path, cells):
    path = write_notebook(tmp_path / "01_audit.ipynb", *cells)
    with pytest.raises(RagbenchError, match=f"expected one cell tagged 'parameters', found {len(cells)}"):
        declared_in(path)


def test_a_name_that_one_cell_declares_twice_is_an_error(tmp_path):
    path = write_notebook(tmp_path / "01_audit.ipynb", "seed: int = 1  # s\nseed: int = 2  # s")
    with pytest.raises(RagbenchError, match=r"line 2.*seed"):
        declared_in(path)


def test_a_notebook_that_is_missing_is_named(tmp_path):
    with pytest.raises(RagbenchError, match=r"gone\.ipynb is missing"):
        declared_in(tmp_path / "gone.ipynb")


@pytest.mark.parametrize(
    "content", [b"hello", b"\xff", b"[]", b"{}", b'{"cells": [1]}', b'{"cells": [{"metadata": []}]}']
)
def test_what_is_no_notebook_is_named_with_what_to_do(tmp_path, content):
    (tmp_path / "text.ipynb").write_bytes(content)
    with pytest.raises(RagbenchError, match=r"text\.ipynb is not a readable notebook .*restore it"):
        declared_in(tmp_path / "text.ipynb")


def test_help_and_default_survive_number_signs_and_several_lines(tmp_path):
    cell = 'mark: str = "# no comment"  # the mark, e.g. #1\nmany: list[int] = [\n    1,\n    2,\n]  # two of them'
    found = declared_in(write_notebook(tmp_path / "01_audit.ipynb", cell))
    assert (found["mark"].default, found["mark"].help) == ("# no comment", "the mark, e.g. #1")
    assert (found["many"].default, found["many"].help) == ([1, 2], "two of them")


def test_values_of_every_declared_type_are_read(known, params_file):
    params_file.write_text(
        "# an experiment\nseed: 7\nrate: 2.0e-5\nnames: [x]\nmodel: 'yes'\nlimit: null\nquick: true\n"
    )
    expected = {"seed": 7, "rate": 2e-5, "names": ["x"], "model": "yes", "limit": None, "quick": True}
    assert read_params_file(params_file, known) == expected


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_a_file_without_keys_sets_nothing(known, params_file, text):
    params_file.write_text(text)
    assert read_params_file(params_file, known) == {}


def test_an_unknown_key_is_answered_with_its_line_and_the_nearest_name(known, params_file):
    params_file.write_text("seed: 7\n\nmodle: base\n")
    with pytest.raises(RagbenchError, match=r"experiment\.yaml, line 3: .*'modle'.* Did you mean 'model'\?"):
        read_params_file(params_file, known)


def test_an_unknown_key_like_no_other_is_answered_with_where_to_look(known, params_file):
    params_file.write_text("zzzzzz: 1\n")
    with pytest.raises(RagbenchError, match=r"line 1: .*'zzzzzz'.*`ragbench params`"):
        read_params_file(params_file, known)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed: '7'", "'seed' must be int, found '7'"),
        ("seed: 7.0", "'seed' must be int, found 7.0"),
        ("seed: true", "'seed' must be int, found True"),
        ("seed: 2024-01-01", "'seed' must be int, found"),
        ("seed:", "'seed' must be int, found None"),
        ("rate: 2e-5", "'rate' must be float, found '2e-5' (YAML reads 2e-5 as text: write 2.0e-5)"),
        ("rate: false", "'rate' must be float, found False"),
        ("rate: .nan", "'rate'"),
        ("rate: .inf", "'rate'"),
        ("names: a", "'names' must be list[str], found 'a'"),
        ("names: [a, 1]", "'names' must be list[str], found ['a', 1]"),
        ("model: no", "'model' must be str, found False"),
        ("model: {name: base}", "'model' must be str, found {'name': 'base'}"),
        ("quick: 1", "'quick' must be bool, found 1"),
        ("limit: 1.5", "'limit' must be int | None, found 1.5"),
    ],
)
def test_a_value_of_the_wrong_type_is_an_error_with_its_line(known, params_file, line, message):
    params_file.write_text(f"# first\n{line}\n")
    with pytest.raises(RagbenchError) as error:
        read_params_file(params_file, known)
    assert f"{params_file}, line 2: {message}" in str(error.value)


def test_an_int_is_good_enough_for_a_float(known, params_file):
    params_file.write_text("rate: 2\n")
    assert read_params_file(params_file, known) == {"rate": 2}


def test_a_key_that_stands_twice_is_an_error_with_both_lines(known, params_file):
    params_file.write_text("seed: 7\nrate: 0.1\nseed: 8\n")
    with pytest.raises(RagbenchError, match=r"line 3: 'seed' stands already on line 1"):
        read_params_file(params_file, known)


@pytest.mark.parametrize(
    ("text", "found"), [("- seed\n- 7\n", "list"), ("seed\n", "str"), ("[]\n", "list"), ("0\n", "int")]
)
def test_a_file_that_is_no_mapping_says_what_it_is(known, params_file, text, found):
    params_file.write_text(text)
    with pytest.raises(RagbenchError, match=rf"experiment\.yaml: expected flat `key: value` lines, found {found}"):
        read_params_file(params_file, known)


@pytest.mark.parametrize("data", [b"seed: [1\n", b"seed: 1\n---\nseed: 2\n", b"model: caf\xe9\n", b"? [a]\n: 1\n"])
def test_a_file_that_is_not_yaml_is_named(known, params_file, data):
    params_file.write_bytes(data)
    with pytest.raises(RagbenchError, match=r"experiment\.yaml is not YAML"):
        read_params_file(params_file, known)


def test_a_missing_file_and_a_folder_are_named(known, params_file):
    with pytest.raises(RagbenchError, match=r"experiment\.yaml is missing"):
        read_params_file(params_file, known)
    params_file.mkdir()
    with pytest.raises(RagbenchError, match=r"experiment\.yaml"):
        read_params_file(params_file, known)


@pytest.mark.parametrize("path", PARAMS_FILES, ids=lambda path: path.name)
def test_every_committed_params_file_sets_declared_keys_and_reads_as_papermill_reads_it(path):
    assert read_params_file(path, declared(PROJECT)) == read_yaml_file(str(path))


def test_a_stage_gets_just_its_own_keys_with_the_files_values_over_the_defaults():
    values = stage_values(declared(PROJECT), {"seed": 99, "audit_questions": 5}, "06_evaluation")
    assert values["seed"] == 99
    assert values["evaluation_worst"] == 15
    assert set(values) == set(papermill.inspect_notebook(str(notebook_path(PROJECT, "06_evaluation"))))


VALUES = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(),
        "rate": st.floats(allow_nan=False, allow_infinity=False),
        "names": st.lists(st.text(max_size=8), max_size=3),
        "model": st.text(max_size=20),
        "limit": st.none() | st.integers(),
        "quick": st.booleans(),
    },
)


@given(VALUES)
@settings(max_examples=60, deadline=None)
def test_whatever_yaml_writes_of_the_right_types_is_read_back(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("params")
    path = folder / "any.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert read_params_file(path, declared_in(write_notebook(folder / "01_audit.ipynb", CELL))) == values
