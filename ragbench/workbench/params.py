"""Parameters: declared by the notebooks, set by params files, checked before anything runs.

A notebook declares its parameters in the one cell tagged ``parameters``: an annotated literal a line, with a trailing
comment that says what it is for. That cell is the only place where a parameter is defined.
"""

import ast
import difflib
import json
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from ragbench.errors import RagbenchError
from ragbench.workbench.project import STAGES, notebook_path

TAG = "parameters"
_TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict, "None": None}


@dataclass(frozen=True)
class Parameter:
    """One parameter as its notebooks declare it.

    Attributes:
        name, annotation, default, help: read from the parameters cell.
        stages: the notebooks that use it.
    """

    name: str
    annotation: str
    default: Any
    help: str
    stages: tuple[str, ...]


def declared_in(path: Path) -> dict[str, Parameter]:
    """Return the parameters of one notebook, by name, in their order.

    Raises:
        RagbenchError: there is not exactly one tagged cell, or a line in it is not ``name: type = literal  # help``.
    """
    try:
        # Every kernel reads its notebook; nbformat would do it too, but takes a second to be imported.
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = ["".join(cell["source"]) for cell in notebook["cells"] if TAG in cell["metadata"].get("tags", [])]
    except FileNotFoundError as error:
        raise RagbenchError(f"The notebook {path} is missing.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise RagbenchError(
            f"{path} is not a readable notebook ({reason}). Save it anew from JupyterLab, or restore it."
        ) from error
    if len(cells) != 1:
        raise RagbenchError(f"{path}: expected one cell tagged '{TAG}', found {len(cells)}.")
    try:
        statements = ast.parse(cells[0]).body
    except SyntaxError as error:
        raise RagbenchError(f"{path}, parameters cell, line {error.lineno}: {error.msg}.") from error
    comments = _comments(cells[0])
    found: dict[str, Parameter] = {}
    for statement in statements:
        parameter = _parameter(statement, comments, path)
        if parameter.name in found:
            raise RagbenchError(f"{path}, parameters cell, line {statement.lineno}: '{parameter.name}' stands twice.")
        found[parameter.name] = parameter
    return found


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ").strip() for token in tokens if token.type == tokenize.COMMENT}


def _parameter(statement: ast.stmt, comments: dict[int, str], path: Path) -> Parameter:
    line = f"{path}, parameters cell, line {statement.lineno}"
    if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name) or not statement.value:
        raise RagbenchError(f"{line}: expected `name: type = literal  # help`.")
    comment = comments.get(statement.end_lineno or statement.lineno, "")
    if not comment:
        raise RagbenchError(f"{line}: '{statement.target.id}' has no trailing comment that says what it is for.")
    try:
        default = ast.literal_eval(statement.value)
    except (ValueError, TypeError) as error:
        raise RagbenchError(f"{line}: the default of '{statement.target.id}' is no literal.") from error
    parameter = Parameter(statement.target.id, ast.unparse(statement.annotation), default, comment, (path.stem,))
    check_value(parameter, default, line)
    return parameter


def declared(root: Path, stages: Iterable[str] = STAGES) -> dict[str, Parameter]:
    """Return the parameters of all stages' notebooks, by name.

    Raises:
        RagbenchError: two notebooks declare one name with different types, defaults or help.
    """
    merged: dict[str, Parameter] = {}
    for stage in stages:
        for name, parameter in declared_in(notebook_path(root, stage)).items():
            earlier = merged.get(name)
            if earlier is None:
                merged[name] = parameter
                continue
            if (earlier.annotation, earlier.default, earlier.help) != (
                parameter.annotation,
                parameter.default,
                parameter.help,
            ):
                raise RagbenchError(
                    f"The parameter '{name}' is declared differently in {earlier.stages[0]} and {stage}; one name "
                    "means one thing: make the two lines equal."
                )
            merged[name] = Parameter(name, earlier.annotation, earlier.default, earlier.help, (*earlier.stages, stage))
    return merged


def check_value(parameter: Parameter, value: Any, where: str) -> None:
    """Check a value against the declared type; an int is a float, nothing else is converted.

    Raises:
        RagbenchError: the value has another type.
    """
    try:
        annotation = eval(parameter.annotation, {"__builtins__": {}}, _TYPES)
        TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)
    except ValidationError as error:
        hint = " (YAML reads 2e-5 as text: write 2.0e-5)" if parameter.annotation == "float" else ""
        raise RagbenchError(
            f"{where}: '{parameter.name}' must be {parameter.annotation}, found {value!r}{hint}."
        ) from error
    except (NameError, TypeError, SyntaxError) as error:
        raise RagbenchError(
            f"{where}: the type '{parameter.annotation}' of '{parameter.name}' is not made of {', '.join(_TYPES)}."
        ) from error


def read_params_file(path: Path, known: Mapping[str, Parameter]) -> dict[str, Any]:
    """Read a params file: flat ``key: value`` in YAML, as papermill's ``-f`` takes it.

    Raises:
        RagbenchError: the file cannot be read, has a key twice, a key that no notebook declares, or a value of the
            wrong type.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except FileNotFoundError as error:
        raise RagbenchError(f"The params file {path} is missing.") from error
    except OSError as error:
        raise RagbenchError(f"The params file {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RagbenchError(f"{path} is not YAML: {error}") from error
    values = {} if values is None else values  # an empty file: every default
    if not isinstance(values, dict):
        raise RagbenchError(f"{path}: expected flat `key: value` lines, found {type(values).__name__}.")
    lines: dict[str, int] = {}
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else []:
        if key.value in lines:
            raise RagbenchError(
                f"{path}, line {key.start_mark.line + 1}: '{key.value}' stands already on line {lines[key.value]}."
            )
        lines[key.value] = key.start_mark.line + 1
    for name, value in values.items():
        where = f"{path}, line {lines.get(str(name), 1)}"
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else " `ragbench params` lists the parameters."
            raise RagbenchError(f"{where}: no notebook declares '{name}'.{hint}")
        check_value(known[name], value, where)
    return values


def stage_values(known: Mapping[str, Parameter], values: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """Return what one notebook gets: every parameter that it declares, with the file's value or the default."""
    return {name: values.get(name, p.default) for name, p in known.items() if stage in p.stages}
