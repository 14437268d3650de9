"""The command line: thin calls into the package."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ragbench import cli_deployment
from ragbench.cli_shared import experiment_of, shown
from ragbench.errors import RagbenchError

if TYPE_CHECKING:
    from ragbench.workbench.execution import Experiment

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
collection_app = typer.Typer(no_args_is_help=True, help="Look at and convert collections.")
cache_app = typer.Typer(no_args_is_help=True, help="The content-addressed caches.")
app.add_typer(collection_app, name="collection")
app.add_typer(cache_app, name="cache")
openai_app = typer.Typer(no_args_is_help=True, help="Fine-tune a served generator through OpenAI's API.")
app.add_typer(openai_app, name="openai")
app.add_typer(cli_deployment.bundle_app, name="bundle")

# Imports stand inside the commands: most load libraries for seconds that `ragbench --help` need not wait for.


def main() -> None:
    """Run the command line; an error that the user can mend is printed without a traceback, exit status 1."""
    try:
        app()
    except RagbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


@app.command()
def run(
    params: Annotated[Path, typer.Argument(help="A params file, e.g. params/quickstart.yaml.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the results instead of runs/NAME.")] = None,
    stages: Annotated[str, typer.Option(help="Only these stages, with commas between; all if left out.")] = "",
    seeds: Annotated[
        str, typer.Option(help="Repeat training and evaluation with each seed, e.g. 1,2,3; shows the spread.")
    ] = "",
) -> None:
    """Execute the notebooks with a params file; what is complete is skipped, what was interrupted resumes."""
    from ragbench.workbench.execution import run_experiment
    from ragbench.workbench.index_page import write_index
    from ragbench.workbench.project import STAGES

    experiment = experiment_of(params, out)
    wanted = [name.strip() for name in stages.split(",")] if stages else list(STAGES)
    if seeds:
        _run_seeds(experiment, wanted, seeds)
        return
    ran = run_experiment(experiment, wanted)
    page = write_index(experiment.run)
    done = f"Ran {', '.join(ran)}" if ran else f"Nothing to do: {stages or 'every stage'} is complete"
    print(f"{done}. Read {shown(page)}")


def _run_seeds(experiment: "Experiment", stages: list[str], text: str) -> None:
    from ragbench.workbench.execution import run_experiment
    from ragbench.workbench.index_page import write_index
    from ragbench.workbench.seeds import ONCE, parse_seeds, seed_folder, write_spread

    seeds = parse_seeds(text)
    for seed in seeds:
        print(f"seed {seed}", file=sys.stderr)
        each = replace(experiment, run=seed_folder(experiment.run, seed), values={**experiment.values, "seed": seed})
        run_experiment(each, [name for name in stages if name not in ONCE])
        write_index(each.run)
    print(f"Read {shown(write_spread(experiment.run, seeds))}")


@app.command()
def status(
    params: Annotated[Path, typer.Argument(help="A params file.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the results instead of runs/NAME.")] = None,
) -> None:
    """Tell for every stage whether it is complete for a params file, and if not, why."""
    from ragbench.workbench.execution import why_left_out, why_stale
    from ragbench.workbench.project import STAGES

    experiment = experiment_of(params, out)
    for stage in STAGES:
        print(f"{stage:16} {why_left_out(experiment, stage) or why_stale(experiment, stage) or 'complete'}")


@app.command("params")
def list_params() -> None:
    """List the parameters that the notebooks declare: name, type, default, notebooks, help."""
    from ragbench.workbench.params import declared
    from ragbench.workbench.project import project_root

    for p in declared(project_root()).values():
        print(f"{p.name}: {p.annotation} = {p.default!r}\n    {p.help} ({', '.join(p.stages)})")


@app.command()
def report(run_folder: Annotated[Path, typer.Argument(help="A folder of results, e.g. runs/quickstart.")]) -> None:
    """Render the reports of a run again from its executed notebooks, and its index.html."""
    from ragbench.workbench.index_page import write_index
    from ragbench.workbench.reports import render_again

    if not run_folder.is_dir():
        raise RagbenchError(f"There is no folder {run_folder}. Start a run with `ragbench run PARAMS`.")
    render_again(run_folder)
    print(f"Read {shown(write_index(run_folder))}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two or more folders of results; the first is the baseline.")],
    system: Annotated[
        str, typer.Option(help="The system to take of each; the one its verdict names if left out.")
    ] = "",
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("compare.html"),
    seed: Annotated[int, typer.Option(help="Of the resampling.")] = 13,
) -> None:
    """Compare runs of different experiments question by question; refuses runs that were asked other questions."""
    from ragbench.evaluation.comparison import as_records, compare_each
    from ragbench.evaluation.scores import summarise
    from ragbench.workbench.evaluated import check_comparable, joined, read_evaluated, write_comparison
    from ragbench.workbench.tables import comparison_rows

    found = [read_evaluated(run, system) for run in runs]
    check_comparable(found)
    scores = joined(found)
    pairs = [(found[0].name, other.name) for other in found[1:]]
    metrics = {"systems": summarise(scores, seed), "comparisons": as_records(compare_each(scores, pairs, seed=seed))}
    for split, metric, before, after, difference, p, holm, n, reading in comparison_rows(metrics):
        print(f"{split:5} {metric:20} {before}  {after}  {difference}  p {p}, {holm} after Holm, n = {n}  {reading}")
    write_comparison(out, found, metrics)
    print(f"Read {shown(out.resolve())}")


@app.command()
def doctor() -> None:
    """Show versions, processor, GPU, models and cache sizes: what a report of a problem should hold."""
    from ragbench.doctor import findings

    for name, finding in findings().items():
        print(f"{name:24} {finding}")


@collection_app.command("check")
def collection_check(path: Annotated[str, typer.Argument(help="A collection folder, or 'pydocs'.")]) -> None:
    """Check a collection: counts, duplicates, leaks between splits, lengths, languages."""
    from ragbench.collection.checks import check_collection
    from ragbench.collection.load import load_collection

    for line in check_collection(load_collection(path)).lines():
        print(line)


@collection_app.command("export")
def collection_export(
    path: Annotated[str, typer.Argument(help="A collection folder, or 'pydocs'.")],
    folder: Annotated[Path, typer.Argument(help="Where to write it.")],
) -> None:
    """Write a collection as files in the BEIR layout."""
    from ragbench.collection.beir import write_collection
    from ragbench.collection.load import load_collection

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RagbenchError(f"{folder} is a file, or not empty; give a new folder.")
    write_collection(load_collection(path), folder)
    print(f"Written: {folder}")


@cache_app.command("clear")
def cache_clear(
    name: Annotated[str | None, typer.Argument(help="One part, e.g. answers; all if left out.")] = None,
) -> None:
    """Empty the caches; what they held is computed again when it is needed."""
    from ragbench import cache

    print(f"Freed {cache.clear(name) / 2**20:.1f} MiB")


OpenaiFolder = Annotated[Path, typer.Argument(help="The folder that `export` wrote.")]
BaseUrl = Annotated[str, typer.Option(envvar="OPENAI_BASE_URL", help="The server's base URL.")]
OPENAI = "https://api.openai.com/v1"


@openai_app.command("export")
def openai_export(
    run_folder: Annotated[Path, typer.Argument(help="A folder of results with 02_data_prep, e.g. runs/quickstart.")],
    folder: Annotated[Path, typer.Argument(help="Where to write; a new folder.")],
    model: Annotated[str, typer.Option(help="The served model to fine-tune, e.g. gpt-4.1-mini-2025-04-14.")],
    price: Annotated[float, typer.Option(help="US dollars for a million training tokens, from its price list.")],
    epochs: Annotated[int, typer.Option(help="Passes over the examples.")] = 3,
) -> None:
    """Write the generator's examples as checked chat JSONL, with what training on them costs at most."""
    from ragbench.training.openai_files import export

    examples = run_folder / "02_data_prep" / "generator.parquet"
    summary = export(examples, folder, model=model, epochs=epochs, price=price)
    print(f"Written: {shown(folder)}. {summary.in_words()}")


@openai_app.command("submit")
def openai_submit(
    folder: OpenaiFolder,
    yes: Annotated[bool, typer.Option("--yes", help="Start it; without this only the cost is shown.")] = False,
    base_url: BaseUrl = OPENAI,
) -> None:
    """Upload an export and start its job, once; without --yes only say what it costs."""
    from ragbench.training.openai_files import read_summary
    from ragbench.training.openai_jobs import connect, submit

    print(read_summary(folder).in_words())
    if not yes:
        raise RagbenchError("Nothing was sent. Add --yes to start the job at this cost.")
    print(f"Started job {submit(folder, connect(base_url))['job']}. Follow it: ragbench openai status {shown(folder)}")


@openai_app.command("status")
def openai_status(folder: OpenaiFolder, base_url: BaseUrl = OPENAI) -> None:
    """Show how an export's job stands."""
    from ragbench.training.openai_jobs import connect, server_of, status

    state = status(folder, connect(server_of(folder, base_url)))
    tokens = f", {state['trained_tokens']:,} tokens trained" if state["trained_tokens"] else ""
    print(f"{state['job']}: {state['status']}{tokens}" + (f"; {state['error']}" if state["error"] else ""))
    for event in state["events"]:
        print(f"  {event}")


@openai_app.command("fetch")
def openai_fetch(folder: OpenaiFolder, base_url: BaseUrl = OPENAI) -> None:
    """Write params.yaml, with the tuned model as the generator, once the job has succeeded."""
    from ragbench.training.openai_jobs import connect, fetch, server_of

    path = fetch(folder, connect(server_of(folder, base_url)))
    print(f"Written: {shown(path)}. Put its lines into a params file to answer with the tuned model.")


for command in (cli_deployment.serve, cli_deployment.failures, cli_deployment.retune):
    app.command()(command)
