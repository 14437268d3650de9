import nbformat
import pytest

from ragbench.errors import RagbenchError
from ragbench.files import write_json
from ragbench.workbench.parts import SYSTEMS, read_parts
from ragbench.workbench.stages import begin_stage

PARAMETERS = nbformat.v4.new_code_cell('run: str = "x"  # folder', metadata={"tags": ["parameters"]})
LEFT = {
    "03_retriever": {"model/config.json": {}, "model/pooling/config.json": {}},
    "04_generator": {"model/adapter_config.json": {}},
}


@pytest.fixture
def begin(tmp_path, monkeypatch):
    for name in ("01_audit", *LEFT, "06_evaluation"):
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=[PARAMETERS]), path)
    monkeypatch.chdir(tmp_path)
    return lambda name: begin_stage(name, "runs/x", {"run": "runs/x"})


def trained(begin, name, kept="tuned", seconds=10.0):
    stage = begin(name)
    for file, content in LEFT[name].items():
        (stage.folder / file).parent.mkdir(parents=True, exist_ok=True)
        write_json(stage.folder / file, content)
    write_json(stage.folder / "decision.json", {"kept": kept, "reason": f"{name} says so.", "seconds": seconds})
    return stage.finish()


def test_each_system_is_made_of_the_parts_that_were_tuned_for_it(begin):
    retriever, generator = (trained(begin, name) / "model" for name in LEFT)
    stage = begin("06_evaluation")
    found = read_parts(stage, ["both", "generator", "retriever"], "local")
    assert list(found) == ["base", "retriever", "generator", "both"]
    assert [(part.retriever, part.generator) for part in found.values()] == [
        (None, None), (retriever, None), (None, generator), (retriever, generator)
    ]  # fmt: skip
    assert [part.seconds for part in found.values()] == [0, 10, 10, 20]
    assert found["both"].decision == {"kept": "tuned", "reason": "03_retriever says so. 04_generator says so."}
    assert {f"{name}/{file}" for name, files in LEFT.items() for file in files} <= set(stage.inputs)


def test_what_a_training_did_not_keep_is_no_part(begin):
    trained(begin, "03_retriever")
    trained(begin, "04_generator", kept="base")
    found = read_parts(begin("06_evaluation"), ["generator", "both"], "local")
    assert found["generator"].generator is found["both"].generator is None
    assert (found["generator"].decision["kept"], found["both"].decision["kept"]) == ("base", "tuned")


@pytest.mark.parametrize("backend", ["endpoint", "none"])
def test_a_generator_that_is_not_trained_here_leaves_its_systems_out(begin, backend):
    trained(begin, "03_retriever")
    assert list(read_parts(begin("06_evaluation"), list(SYSTEMS), backend)) == ["base", "retriever"]


def test_a_part_that_was_not_trained_yet_names_its_notebook(begin):
    trained(begin, "03_retriever")
    with pytest.raises(RagbenchError, match=r"Run notebooks/04_generator\.ipynb first"):
        read_parts(begin("06_evaluation"), ["retriever", "both"], "local")
    assert list(read_parts(begin("06_evaluation"), ["retriever"], "local")) == ["base", "retriever"]


@pytest.mark.parametrize(
    ("systems", "said"), [(["bth"], "no system 'bth'"), (["base"], "no tuned system"), ([], "add")]
)
def test_names_that_give_nothing_to_compare_are_an_error(begin, systems, said):
    with pytest.raises(RagbenchError, match=f"evaluation_systems.*{said}"):
        read_parts(begin("06_evaluation"), systems, "local")
