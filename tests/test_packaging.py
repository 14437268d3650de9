"""The files that set ragbench up agree with one another."""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CARD = {
    "jupyterlab", "papermill", "transformers", "peft", "trl", "sentence-transformers", "datasets", "ragas", "faiss-gpu",
    "torch", "matplotlib",
}  # fmt: skip


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def conda_pins() -> dict[str, str]:
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in dependencies if isinstance(entry, dict))
    return dict(line.split("==") for line in pip if "==" in line)


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_environment_yml_has_the_locks_versions():
    lock = locked() | {"faiss-gpu": locked()["faiss-cpu"]}
    assert {name: lock[name] for name in conda_pins()} == conda_pins()


def test_environment_yml_has_the_packages_of_the_design_and_only_one_faiss():
    assert set(conda_pins()) >= CARD
    assert "faiss-cpu" not in conda_pins()
    assert "faiss-gpu" not in locked()


def test_the_lock_pins_every_line_exactly():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[0-9][\w.]*", line) for line in lines)


def test_the_lock_satisfies_pyproject():
    lock = locked()
    extras = [line for name, lines in project()["optional-dependencies"].items() if name != "gpu" for line in lines]
    for requirement in map(Requirement, project()["dependencies"] + extras):
        version = lock[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is not satisfied by {version}"


def test_the_lock_is_what_is_installed():
    import importlib.metadata

    found = {name: importlib.metadata.version(name).split("+")[0] for name in locked()}
    assert found == locked()


def test_the_lock_needs_no_cpp_build():
    assert not {"llama-cpp-python", "llm"} & set(locked())


def test_every_import_of_the_package_is_a_declared_dependency():
    import ast
    import sys

    distributions = {
        "yaml": "pyyaml",
        "faiss": "faiss-cpu",
        "cycler": "matplotlib",
        "sklearn": "scikit-learn",
        "llama_index": "llama-index-core",
    }  # the others differ by case or "_"
    known = project()["optional-dependencies"]
    extras = [line for name in ("langchain", "llama-index") for line in known[name]]
    declared = {canonicalize_name(Requirement(line).name) for line in [*project()["dependencies"], *extras]}
    declared |= {"faiss-cpu"}
    imported = set()
    for path in (ROOT / "ragbench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            imported |= {name.split(".")[0] for name in names}
    ours = imported - set(sys.stdlib_module_names) - {"ragbench"}
    assert {canonicalize_name(distributions.get(name, name)) for name in ours} <= declared
