import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ragbench"
# What each package may import besides itself and BASE. Section 3 of the design: dependencies go leftwards only.
MAY_IMPORT = {
    "collection": set(),
    "retrieval": {"collection"},
    "generation": {"collection", "retrieval"},
    "evaluation": {"collection", "retrieval", "generation"},
    "diagnosis": {"collection", "retrieval", "generation", "evaluation"},
    "training": {"collection", "retrieval", "generation", "evaluation"},
    "deployment": {"collection", "retrieval", "generation", "evaluation", "diagnosis", "training", "workbench"},
    "workbench": set(),
}
BASE = {"errors", "files", "cache", "devices", "models"}
# Files and notebooks only: the workbench loads no model.
NOT_FOR = {"workbench": {"models", "devices"}}
ENTRY_POINTS = {"cli", "cli_deployment", "cli_shared", "doctor"}


def imported(path: Path) -> set[str]:
    """Return what of ragbench a file imports, anywhere in it, as the first name after the package's."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in modules if name.split(".")[0] == "ragbench" and "." in name}
    return found - {"__version__"}


def files_of(package: str) -> list[Path]:
    return sorted((PACKAGE / package).rglob("*.py"))


PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def test_every_package_has_its_place_in_the_order():
    assert set(PACKAGES) <= set(MAY_IMPORT)
    assert {"collection", "retrieval", "generation", "evaluation", "workbench"} <= set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_stands_left_of_it(package):
    allowed = ({package} | BASE | MAY_IMPORT[package]) - NOT_FOR.get(package, set())
    wrong = {str(path.relative_to(PACKAGE)): sorted(imported(path) - allowed) for path in files_of(package)}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_the_base_modules_import_no_package():
    assert {name: imported(PACKAGE / f"{name}.py") - BASE for name in BASE} == {name: set() for name in BASE}


def test_every_module_at_the_top_is_a_base_module_or_an_entry_point():
    assert {path.stem for path in PACKAGE.glob("*.py")} == BASE | ENTRY_POINTS | {"__init__"}


def test_nothing_imports_the_command_line():
    assert [path for path in PACKAGE.rglob("*.py") if "cli" in imported(path)] == []


def test_packages_stand_on_the_one_below_them():
    found = {package: set().union(*map(imported, files_of(package))) for package in PACKAGES}
    assert "collection" in found["retrieval"]
    assert "retrieval" in found["generation"]
    assert "generation" in found["evaluation"]
