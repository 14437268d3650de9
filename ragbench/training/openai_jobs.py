"""Fine-tuning jobs of OpenAI's API, or of a server that speaks its routes: started once, followed, fetched.

What was done stands in job.json beside the exported files, written after each step: an interrupted `submit` goes on
where it was. Before a job is created, the server is asked whether one with these very files exists: the answer to an
earlier request may have been lost on its way.

The key comes from the environment (``RAGBENCH_API_KEY``, else ``OPENAI_API_KEY``) and goes nowhere else.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import openai
from openai.types.fine_tuning import FineTuningJob

from ragbench.errors import RagbenchError
from ragbench.files import write_json, write_text
from ragbench.training.openai_files import TRAIN, VALIDATION, read_summary

JOB, PARAMS = "job.json", "params.yaml"
_RETRIES = 6
_T = TypeVar("_T")


def connect(base_url: str, wait: float = 1.0) -> "Connection":
    """Return a connection to a server; `wait` is the first pause in seconds before a refused request is tried again.

    Raises:
        RagbenchError: there is no key.
    """
    key = os.environ.get("RAGBENCH_API_KEY") or os.environ.get("OPENAI_API_KEY")
    if not key:
        raise RagbenchError("Set OPENAI_API_KEY (or RAGBENCH_API_KEY) in the environment.")
    # Nothing is tried again by the client: a job whose creation is repeated after a broken connection runs twice.
    return Connection(openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=120.0), base_url, wait)


class Connection:
    """A client with the patience that fits each request."""

    def __init__(self, client: openai.OpenAI, base_url: str, wait: float) -> None:
        self._client, self.base_url, self._wait = client, base_url, wait

    def upload(self, path: Path) -> str:
        """Upload a training file; return its id. A file that arrived twice costs nothing."""

        def send() -> str:
            with path.open("rb") as file:
                return self._client.files.create(file=file, purpose="fine-tune").id

        return self._patiently(send, f"uploading {path.name}")

    def create(self, model: str, files: dict[str, str], epochs: int) -> FineTuningJob:
        """Create a job, tried again only where the server said that it took nothing on (429)."""
        validation = {"validation_file": files[VALIDATION]} if VALIDATION in files else {}
        return self._patiently(
            lambda: self._client.fine_tuning.jobs.create(
                model=model,
                training_file=files[TRAIN],
                method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": epochs}}},
                **validation,  # type: ignore[arg-type]
            ),
            "creating the job",
            (openai.RateLimitError,),
        )

    def find(self, training_file: str) -> FineTuningJob | None:
        """Return the job that trains on an uploaded file, if there is one."""
        jobs = self._patiently(lambda: list(self._client.fine_tuning.jobs.list(limit=100)), "listing the jobs")
        return next((job for job in jobs if job.training_file == training_file), None)

    def job(self, name: str) -> FineTuningJob:
        """Return a job as it is now."""
        return self._patiently(lambda: self._client.fine_tuning.jobs.retrieve(name), f"asking for job {name}")

    def events(self, name: str) -> list[str]:
        """Return a job's latest events, the oldest first."""
        page = self._patiently(
            lambda: self._client.fine_tuning.jobs.list_events(name, limit=10).data, f"asking for events of {name}"
        )
        return [event.message for event in reversed(page)]

    def _patiently(
        self,
        request: Callable[[], _T],
        doing: str,
        again: tuple[type[openai.APIError], ...] = (
            openai.RateLimitError,
            openai.InternalServerError,
            openai.APIConnectionError,
        ),
    ) -> _T:
        for attempt in range(_RETRIES + 1):
            try:
                return request()
            except openai.APIError as error:
                if not isinstance(error, again) or attempt == _RETRIES or _exhausted(error):
                    raise RagbenchError(f"{self.base_url}, {doing}: {_reason(error)}") from error
                time.sleep(self._wait * 2**attempt)
        raise AssertionError("unreachable")


def _exhausted(error: openai.APIError) -> bool:
    """Whether a 429 speaks of the account's money and not of its speed."""
    return getattr(error, "code", None) == "insufficient_quota"


def _reason(error: openai.APIError) -> str:
    if isinstance(error, openai.APIStatusError):
        return f"HTTP {error.status_code}: {error.message}"
    return f"{type(error).__name__}: {error.message}. Run the command again: nothing is done twice."


def submit(folder: Path, connection: Connection) -> dict[str, Any]:
    """Upload an export's files and start its job, or go on where an earlier attempt was; return what job.json holds.

    Raises:
        RagbenchError: the export is not whole, its job was started before, or the server refuses or cannot be reached.
    """
    summary, state = read_summary(folder), _state(folder)
    if "job" in state:
        raise RagbenchError(
            f"{folder / JOB}: job {state['job']} was started for these files. Follow it with `ragbench openai status "
            f"{folder}`; to train anew, export into another folder."
        )
    state |= {"base_url": connection.base_url, "model": summary.model, "epochs": summary.epochs}
    for name in summary.sha256:
        if name not in state.setdefault("files", {}):
            state["files"][name] = connection.upload(folder / name)
            write_json(folder / JOB, state)
    job = connection.find(state["files"][TRAIN]) or connection.create(summary.model, state["files"], summary.epochs)
    state |= {"job": job.id, "status": job.status}
    write_json(folder / JOB, state)
    return state


def status(folder: Path, connection: Connection) -> dict[str, Any]:
    """Ask how the job stands and note it in job.json; return that, with the latest ``events``.

    Raises:
        RagbenchError: no job was started, or the server refuses or cannot be reached.
    """
    state = _started(folder)
    job = connection.job(state["job"])
    state |= {"status": job.status, "trained_tokens": job.trained_tokens, "tuned_model": job.fine_tuned_model}
    state["error"] = job.error.message if job.error and job.error.message else None
    write_json(folder / JOB, state)
    return state | {"events": connection.events(state["job"])}


def fetch(folder: Path, connection: Connection) -> Path:
    """Write a params file that answers with the tuned model, once its job has succeeded; return its path.

    Raises:
        RagbenchError: the job has not succeeded, or what `status` raises.
    """
    state = status(folder, connection)
    if state["status"] in ("failed", "cancelled"):
        raise RagbenchError(
            f"Job {state['job']} {'has failed' if state['status'] == 'failed' else 'was cancelled'}"
            f"{': ' + state['error'] if state['error'] else ''}. Mend the cause, export anew, and submit that."
        )
    if state["status"] != "succeeded" or not state["tuned_model"]:
        raise RagbenchError(f"Job {state['job']} is not ready: {state['status']}. Ask again later.")
    lines = {
        "generator_backend": "endpoint",
        "generator_endpoint": connection.base_url,
        "generator_model": state["tuned_model"],
    }
    # JSON strings are YAML strings too, whatever a model's name holds.
    write_text(folder / PARAMS, "".join(f"{name}: {json.dumps(value)}\n" for name, value in lines.items()))
    return folder / PARAMS


def server_of(folder: Path, default: str) -> str:
    """Return the base URL that an export was submitted to, else the default."""
    return str(_state(folder).get("base_url", default))


def _started(folder: Path) -> dict[str, Any]:
    state = _state(folder)
    if "job" not in state:
        raise RagbenchError(f"No job was started for {folder}. Run `ragbench openai submit {folder}`.")
    return state


def _state(folder: Path) -> dict[str, Any]:
    path = folder / JOB
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RagbenchError(
            f"{path} cannot be read ({error}). It tells which job was started; mend it rather than delete it."
        ) from error
