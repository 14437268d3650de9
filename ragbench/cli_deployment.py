"""The command line of deployment: thin calls into the package."""

from pathlib import Path
from typing import Annotated

import typer

from ragbench.cli_shared import experiment_of, shown

bundle_app = typer.Typer(no_args_is_help=True, help="Pack systems to answer with; put versions into use and back.")
Store = Annotated[Path, typer.Option(envvar="RAGBENCH_BUNDLES", help="The folder of all bundles.")]
BUNDLES = Path("bundles")
Reference = Annotated[str, typer.Argument(help="NAME (the version in use), NAME/VERSION, or a bundle's folder.")]


@bundle_app.command("create")
def bundle_create(
    run_folder: Annotated[Path, typer.Argument(help="A folder of results with 06_evaluation, e.g. runs/quickstart.")],
    system: Annotated[str, typer.Argument(help="The system to pack; the one its verdict names if left out.")] = "",
    name: Annotated[str, typer.Option(help="Of the bundle; the run's name if left out.")] = "",
    store: Store = BUNDLES,
) -> None:
    """Pack a system of a run as the next version of a bundle, with the numbers that speak for it."""
    from ragbench.deployment.bundle import pack
    from ragbench.deployment.packing import contents_of
    from ragbench.deployment.store import add

    contents = contents_of(run_folder, system)
    chosen = name or run_folder.resolve().name
    version, manifest = add(store, chosen, lambda folder: pack(contents, folder))
    print(f"Packed {manifest.system} as {chosen}/{version}: {shown(store / chosen / version)}")
    print(f"Put it into use: ragbench bundle promote {chosen} {version}")


@bundle_app.command("verify")
def bundle_verify(
    reference: Reference,
    ask: Annotated[bool, typer.Option("--ask", help="Ask the canaries again, and tell which changed.")] = False,
    store: Store = BUNDLES,
) -> None:
    """Check every part of a bundle against its manifest, and the index against the retriever inside.

    With --ask, exit status 1 if more canaries changed than rounding explains.
    """
    from ragbench.deployment.answering import open_bundle
    from ragbench.deployment.bundle import verify
    from ragbench.deployment.canaries import ask_again, canaries_table, canary_signals
    from ragbench.deployment.drift import signals_table
    from ragbench.deployment.store import find_bundle

    folder = find_bundle(store, reference)
    deployed = open_bundle(folder) if ask else None  # opening verifies
    manifest = deployed.manifest if deployed else verify(folder)
    print(f"{shown(folder)} is whole: {manifest.system} from {manifest.origin}, {manifest.passages:,} passages")
    if deployed:
        asked = ask_again(deployed)
        signals = canary_signals(asked)
        for canary in canaries_table(asked).to_dict("records"):
            print("; ".join(f"{name}: {value}" for name, value in canary.items()))
        print(signals_table(signals).to_string(index=False))
        if any(signal.alarm for signal in signals):
            raise typer.Exit(1)


@bundle_app.command("list")
def bundle_list(store: Store = BUNDLES) -> None:
    """List the bundles with their versions; a star marks the one in use."""
    from ragbench.deployment.bundle import read_manifest
    from ragbench.deployment.store import current, names, versions

    for name in names(store):
        for version in versions(store, name):
            manifest = read_manifest(store / name / version)
            star = "*" if version == current(store, name) else " "
            print(f"{star} {name}/{version}  {manifest.created}  {manifest.system:12} {manifest.origin}")


@bundle_app.command("promote")
def bundle_promote(
    name: Annotated[str, typer.Argument(help="The bundle.")],
    version: Annotated[str, typer.Argument(help="The version to put into use.")],
    collection: Annotated[str, typer.Option(help="The collection whose held-out questions the gate asks.")] = "pydocs",
    questions: Annotated[int, typer.Option(help="So many of them, drawn at random; 0 for all.")] = 0,
    tolerate: Annotated[
        list[str] | None, typer.Option(help="METRIC=LOSS: a mean loss to let pass, e.g. answer_f1=0.03.")
    ] = None,
    store: Store = BUNDLES,
) -> None:
    """Put a version into use, if it is not clearly worse than the present one."""
    from ragbench.deployment.bundle import verify
    from ragbench.deployment.gate import Gate, admit, parse_tolerated
    from ragbench.deployment.store import current, find_bundle, promote

    folder = find_bundle(store, f"{name}/{version}")
    verify(folder)
    present = current(store, name)
    why = "the first version in use"
    if present and present != version:
        gate = Gate(tolerated=parse_tolerated(tolerate or []), questions=questions)
        for line in admit(find_bundle(store, f"{name}/{present}"), folder, collection, gate):
            print(line)
        why = f"passed the gate against {present} on {collection}"
    change = promote(store, name, version, why)
    print(f"In use: {name}/{change.after}" + (f", before it {change.before}" if change.before else ""))


@bundle_app.command("rollback")
def bundle_rollback(name: Annotated[str, typer.Argument(help="The bundle.")], store: Store = BUNDLES) -> None:
    """Put the version into use again that was in use before the present one."""
    from ragbench.deployment.store import roll_back

    change = roll_back(store, name)
    print(f"In use: {name}/{change.after}, no longer {change.before}")


@bundle_app.command("update")
def bundle_update(
    name: Annotated[str, typer.Argument(help="The bundle.")],
    collection: Annotated[str, typer.Argument(help="The collection with the passages as they are now.")],
    store: Store = BUNDLES,
) -> None:
    """Pack the version in use with other passages, as the next version; only new and changed ones are encoded."""
    from ragbench.collection.load import load_collection
    from ragbench.deployment.bundle import pack
    from ragbench.deployment.packing import with_passages
    from ragbench.deployment.store import add, find_bundle

    contents = with_passages(find_bundle(store, name), load_collection(collection))
    version, manifest = add(store, name, lambda folder: pack(contents, folder))
    print(f"Packed {name}/{version} with {manifest.passages:,} passages")
    print(f"Put it into use: ragbench bundle promote {name} {version}")


@bundle_app.command("ask")
def bundle_ask(
    reference: Reference,
    question: Annotated[str, typer.Argument(help="What to ask.")],
    store: Store = BUNDLES,
) -> None:
    """Ask a bundle one question; shows the answer and the passages that it was given."""
    from ragbench.deployment.answering import answer_all, open_bundle
    from ragbench.deployment.store import find_bundle

    [reply] = answer_all(open_bundle(find_bundle(store, reference)), [question])
    print(reply.answer)
    for source in reply.sources:
        print(f"  {source.score:.3f}  {source.id}")


def serve(
    reference: Reference,
    store: Store = BUNDLES,
    host: Annotated[str, typer.Option(help="Address; others than loopback need RAGBENCH_SERVE_TOKEN.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.")] = 8000,
    log: Annotated[Path, typer.Option(help="The query log, a file of SQLite.")] = Path("queries.sqlite"),
    keep_text: Annotated[bool, typer.Option(help="Keep questions and answers in the log, or only hashes.")] = True,
    keep_days: Annotated[float, typer.Option(help="Delete what is older from the log; 0 keeps everything.")] = 0.0,
    grounding: Annotated[bool, typer.Option(help="Estimate the grounding of answers when nothing else waits.")] = True,
    waiting: Annotated[int, typer.Option(help="Questions that may wait; one more gets status 429.")] = 64,
    batch: Annotated[int, typer.Option(help="Questions that are answered together.")] = 16,
    timeout: Annotated[float, typer.Option(help="Seconds until a question is given up.")] = 120.0,
) -> None:
    """Serve a bundle as OpenAI's chat completions, with search, feedback, health and metrics.

    A bundle that is given by its NAME is followed: a version that is promoted takes over without a restart.
    """
    import uvicorn

    from ragbench.deployment.answerer import Answerer, Limits
    from ragbench.deployment.answering import open_bundle
    from ragbench.deployment.bundle import MANIFEST
    from ragbench.deployment.query_log import QueryLog
    from ragbench.deployment.service import check_exposure, make_app, token_from_environment
    from ragbench.deployment.store import find_bundle
    from ragbench.retrieval.encoder import open_encoder

    token = token_from_environment()
    check_exposure(host, token)
    deployed = open_bundle(find_bundle(store, reference))
    followed = "/" not in reference and not (Path(reference) / MANIFEST).is_file()
    answerer = Answerer(
        deployed,
        reference if followed else "",
        QueryLog(log, keep_text=keep_text, days=keep_days),
        Limits(waiting=waiting, batch=batch, seconds=timeout),
        open_encoder("all-MiniLM-L6-v2") if grounding else None,
    )
    print(f"Serving {answerer.bundle} on http://{host}:{port}/v1; the query log is {shown(log.resolve())}", flush=True)
    uvicorn.run(make_app(answerer, store if followed else None, token), host=host, port=port, log_level="warning")


Log = Annotated[Path, typer.Option(help="The query log that `ragbench serve` writes.")]
Days = Annotated[float, typer.Option(help="The last days of the log are compared with the days before them.")]


def failures(
    log: Log = Path("queries.sqlite"),
    days: Days = 7.0,
    out: Annotated[Path | None, typer.Option(help="Write them for labelling into this new folder.")] = None,
) -> None:
    """List what went wrong in the last days of a query log, alike questions together."""
    import time

    from ragbench.deployment.failures import export, failures_in, groups
    from ragbench.deployment.query_log import DAY, read_log
    from ragbench.retrieval.encoder import open_encoder

    entries = read_log(log, since=time.time() - days * DAY)
    gathered = groups(failures_in(entries), open_encoder("all-MiniLM-L6-v2"))
    print(f"{sum(map(len, gathered))} questions of {len(entries)} answers, in {len(gathered)} groups")
    for group in gathered:
        for place, failure in enumerate(group):
            print(f"{'-' if place else '*'} {failure.entry.question}  ({', '.join(failure.reasons)})")
    if out:
        print(f"Written for labelling: {export(gathered, out)} questions in {shown(out.resolve())}")


def retune(
    name: Annotated[str, typer.Argument(help="The bundle in use.")],
    params: Annotated[Path, typer.Argument(help="The params file to tune again with.")],
    collection: Annotated[str, typer.Option(help="The collection as it is now; the params file's if left out.")] = "",
    log: Log = Path("queries.sqlite"),
    days: Days = 7.0,
    yes: Annotated[bool, typer.Option("--yes", help="Carry it out; without this it is only said.")] = False,
    store: Store = BUNDLES,
) -> None:
    """Decide from drift and failures what to tune again; with --yes run it, and put it into use if the gate agrees.

    Exit status: 0 something was put into use, or would be tried with --yes; 99 nothing is to be done; 1 an error, or
    the gate refused.
    """
    import time

    from ragbench.collection.load import load_collection
    from ragbench.deployment.answering import open_bundle
    from ragbench.deployment.canaries import ask_again, canary_signals
    from ragbench.deployment.gate import Gate
    from ragbench.deployment.query_log import DAY, read_log
    from ragbench.deployment.retuning import carry_out, look
    from ragbench.deployment.store import find_bundle
    from ragbench.retrieval.encoder import open_encoder

    experiment = experiment_of(params, None)
    place = collection or experiment.values.get("collection", experiment.known["collection"].default)
    now = time.time()
    before, after = read_log(log, until=now - days * DAY), read_log(log, since=now - days * DAY)
    present = find_bundle(store, name)
    decided, _ = look(
        before,
        after,
        present,
        load_collection(place, experiment.root),
        open_encoder("all-MiniLM-L6-v2"),
        canaries=canary_signals(ask_again(open_bundle(present))),
    )
    for reason in decided.reasons:
        print(reason)
    if decided.nothing:
        print("Nothing is to be done.")
        raise typer.Exit(99)
    print(f"To do: {decided.todo}")
    if yes:
        change, said = carry_out(decided, store, name, experiment, place, Gate())
        for line in said:
            print(line)
        print(f"In use: {name}/{change.after}, before it {change.before}")
