import base64
import hashlib
import html
import io
import json
import re
import sysconfig
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ragbench.files import write_json
from ragbench.workbench.index_page import write_index
from ragbench.workbench.project import STAGES
from ragbench.workbench.reports import render, render_again, save_report, scrub_file
from ragbench.workbench.stages import begin_stage
from ragbench.workbench.tables import plain_table

FIRST, SECOND = STAGES[0], "06_evaluation"
EVIL = "<script>alert('&')</script>"
METRICS = {"systems": {"base": {"test": {"ndcg@10": {"mean": 0.5, "ci": [0.4, 0.6], "n": 20, "scored": 18}}}}}
PARAMETERS = 'run: str = "runs/x"  # r\nseed: int = 1  # s\nrate: float = 0.1  # rate\ncollection: str = "c"  # c'
VALUES = {"run": "runs/x", "seed": 7, "rate": 2e-05, "collection": 'it\'s <b> "é" ✓: #1'}


class Page(HTMLParser):
    """Collects what a browser would load, and the text of each folded and unfolded part."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.links: list[str] = []
        self.folded = self.open_text = self.style = ""
        self.inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "srcset", "data", "poster", "background")]
        if tag == "a":
            self.links.append(values.get("href", ""))
        elif "href" in values:
            self.loads.append(values["href"])
        if tag == "style" or (tag == "details" and values.get("class") == "code" and "open" not in values):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside[-1:] == [tag]:
            self.inside.pop()

    def handle_data(self, data):
        if "style" in self.inside:
            self.style += data
        elif self.inside:
            self.folded += data
        else:
            self.open_text += data


def png() -> bytes:
    figure, ax = plt.subplots(figsize=(1, 1))
    ax.plot([1, 2])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()


def shown(*outputs, source: str = "work()") -> nbformat.NotebookNode:
    return new_notebook(
        cells=[new_markdown_cell("# 01 · Audit\n\nRead [this](https://example.org/page)."),
               new_code_cell(source, outputs=list(outputs), execution_count=1)],
        metadata={"language_info": {"name": "python"}},
    )  # fmt: skip


def stream(text: str, name: str = "stdout") -> nbformat.NotebookNode:
    return new_output("stream", name=name, text=text)


def display(**data: str) -> nbformat.NotebookNode:
    names = {"text": "text/plain", "html": "text/html", "png": "image/png"}
    return new_output("display_data", data={names.get(kind, kind): value for kind, value in data.items()})


def saved(tmp_path: Path, notebook, root: Path, **parameters) -> tuple[str, str]:
    nbformat.write(notebook, tmp_path / "executed.ipynb")
    save_report(tmp_path / "executed.ipynb", tmp_path / "run" / FIRST, root, parameters)
    return tuple((tmp_path / "run" / FIRST / f"report.{kind}").read_text() for kind in ("ipynb", "html"))


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "home" / "alice"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A project of two notebooks with the folder of a run in which both stages are complete."""
    notebook = new_notebook(cells=[new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})])
    (tmp_path / "project" / "notebooks").mkdir(parents=True)
    for stage in STAGES:
        nbformat.write(notebook, tmp_path / "project" / "notebooks" / f"{stage}.ipynb")
    monkeypatch.chdir(tmp_path / "project")
    first = begin_stage(FIRST, "runs/x", VALUES)
    (first.folder / "a.txt").write_text("hello")
    (first.finish() / "report.html").write_text("a report")
    second = begin_stage(SECOND, "runs/x", VALUES)
    second.uses("collection", "c0ffee")
    write_json(second.folder / "metrics.json", METRICS)
    write_json(
        second.folder / "verdict.json", {"headline": EVIL + " holds", "sections": {EVIL: [EVIL + " one", "two"]}}
    )
    (second.folder / "metrics.png").write_bytes(png())
    return second.finish().parent


def test_a_page_loads_nothing_and_may_link():
    picture = base64.b64encode(png()).decode()
    page = Page(render(shown(display(png=picture, text="<Figure>"), display(html="<b>bold</b>")), FIRST, "x"))
    assert "script" not in page.tags
    assert [load.split(",")[0] for load in page.loads] == ["data:image/png;base64"]
    assert not re.search(r"url\(|@import", page.style)
    assert "https://example.org/page" in page.links
    assert "b" in page.tags


def test_code_is_folded_and_results_are_not():
    page = Page(render(shown(stream("the result"), source="secret_of_success = 1"), FIRST, "x"))
    assert "secret_of_success" in page.folded
    assert "secret_of_success" not in page.open_text
    assert "the result" in page.open_text
    assert "01 · Audit" in page.open_text


@pytest.mark.parametrize(
    "output",
    [
        stream(EVIL),
        display(text=EVIL),
        new_output("error", ename="ValueError", evalue=EVIL, traceback=[f"\x1b[31mValueError\x1b[0m: {EVIL}"]),
        display(html=plain_table(pd.DataFrame({EVIL: [EVIL]})).data),
    ],
    ids=["printed", "value", "error", "table"],
)
def test_a_script_in_what_a_cell_shows_is_text(output):
    page = Page(render(shown(output), FIRST, "x"))
    assert "script" not in page.tags
    assert EVIL in page.open_text


def test_a_script_in_code_title_stage_or_run_is_text():
    notebook = shown(source=f"print({EVIL!r})")
    notebook.cells[0].source = f"# About `{EVIL}`"
    page = Page(render(notebook, EVIL, EVIL))
    assert "script" not in page.tags
    assert EVIL in page.folded
    assert page.open_text.count(EVIL) >= 3


def test_the_title_names_the_notebook_and_the_run():
    assert "<title>01 · Audit · trial</title>" in render(shown(), FIRST, "trial")
    assert f"<title>{FIRST} · trial</title>" in render(new_notebook(), FIRST, "trial")


def test_progress_bars_stay_in_the_notebook_and_out_of_the_page(tmp_path):
    widget = {"application/vnd.jupyter.widget-view+json": "{}", "text": "Loading: 0%"}
    notebook, page = saved(tmp_path, shown(stream("75%|###", "stderr"), display(**widget), stream("done")), tmp_path)
    assert "75%|###" in notebook
    assert "75%|###" not in page
    assert "Loading: 0%" not in page
    assert "done" in page


def test_paths_of_project_home_and_cache_are_shortened(tmp_path, home, own_cache):
    root = home / "work" / "project"
    lines = [f"{root}/runs/x", f"in {root}", f"{home}/notes.txt", f"{own_cache}/models", "/usr/share stays"]
    outputs = [stream("\n".join(lines)), display(html=f"<p>{root}/a</p>", text=f"'{root}/a'")]
    notebook, page = saved(tmp_path, shown(*outputs, source=f"open('{home}/b')"), root)
    for text in (notebook, page):
        assert str(tmp_path) not in text
        for expected in ("runs/x", "in .", "~/notes.txt", "$RAGBENCH_CACHE/models", "/usr/share stays"):
            assert expected in text


def test_paths_of_installed_packages_are_shortened(tmp_path):
    place = sysconfig.get_path("purelib")
    text = f"{place}/torch/nn.py:12: UserWarning: old"
    notebook, _ = saved(tmp_path, shown(stream(text, "stderr"), stream(text)), tmp_path / "project")
    assert place not in notebook
    assert "torch/nn.py:12: UserWarning: old" in notebook


@pytest.mark.parametrize("place", ["/", ""])
def test_a_home_that_is_the_root_of_the_disk_spoils_nothing(tmp_path, monkeypatch, place):
    monkeypatch.setenv("HOME", place)
    notebook, page = saved(tmp_path, shown(stream("1/2 and a/b"), display(html="<p>x</p>")), tmp_path / "project")
    assert "1/2 and a/b" in notebook
    assert "1/2 and a/b" in page
    assert "<p>x</p>" in page


def test_a_folder_whose_name_starts_like_the_project_is_not_cut(tmp_path):
    root = tmp_path / "app"
    notebook, _ = saved(tmp_path, shown(stream(f"{root}/a and https://example.org{root}let")), root)
    assert f"https://example.org{root}let" in notebook


@pytest.mark.parametrize("name", ["MY_API_KEY", "hf_token", "DB_PASSWORD", "CLIENT_SECRET"])
def test_values_of_secret_environment_variables_are_gone(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "s3cr3t-v4lue")
    monkeypatch.setenv("HARMLESS", "harmless-value")
    error = new_output("error", ename="E", evalue="s3cr3t-v4lue", traceback=["E: s3cr3t-v4lue"])
    outputs = [stream("got s3cr3t-v4lue and harmless-value"), display(html="<p>s3cr3t-v4lue</p>"), error]
    notebook, page = saved(tmp_path, shown(*outputs, source="key = 's3cr3t-v4lue'"), tmp_path / "project")
    assert "s3cr3t-v4lue" not in notebook + page
    assert "got *** and harmless-value" in notebook
    assert "got *** and harmless-value" in page


def test_a_short_secret_does_not_blank_ordinary_words(tmp_path, monkeypatch):
    monkeypatch.setenv("SORT_KEY", "name")
    notebook, _ = saved(tmp_path, shown(stream("the name of it")), tmp_path / "project")
    assert "the name of it" in notebook


def test_a_parameter_that_is_an_absolute_path_keeps_its_last_part(tmp_path):
    notebook = shown(stream("/data/private/covid has 5 passages"), source='collection = "/data/private/covid"')
    for text in saved(tmp_path, notebook, tmp_path / "project", collection="/data/private/covid", seed=3, depth=5):
        assert "/data/private" not in text
        assert "…/covid has 5 passages" in text


def test_a_parameter_that_is_a_list_of_paths_is_shortened(tmp_path):
    notebook = shown(source='adapters = ["/data/private/a", "~/b"]')
    texts = saved(tmp_path, notebook, tmp_path / "project", adapters=["/data/private/a", "~/b"])
    assert all("/data/private" not in text for text in texts)


def test_a_kept_notebook_is_scrubbed_in_place(tmp_path, home):
    path = tmp_path / "failed.ipynb"
    nbformat.write(shown(stream(f"{home}/x and /data/private/covid")), path)
    scrub_file(path, tmp_path / "project", {"collection": "/data/private/covid"})
    assert "~/x and …/covid" in nbformat.read(path, as_version=4).cells[1].outputs[0].text


def test_a_saved_notebook_is_still_a_valid_notebook(tmp_path):
    saved(tmp_path, shown(stream(EVIL)), tmp_path / "project")
    nbformat.validate(nbformat.read(tmp_path / "run" / FIRST / "report.ipynb", as_version=4))


def test_rendering_again_gives_the_same_page(tmp_path):
    _, page = saved(tmp_path, shown(stream("the result")), tmp_path / "project")
    (tmp_path / "run" / FIRST / "report.html").write_text("old")
    render_again(tmp_path / "run")
    assert (tmp_path / "run" / FIRST / "report.html").read_text() == page


def test_the_index_shows_the_verdict_as_text_and_the_table(run):
    page = Page(write_index(run).read_text())
    assert "script" not in page.tags
    for expected in (EVIL + " holds", EVIL + " one", "two", "base on test", "0.500 [0.400, 0.600] n = 18 of 20"):
        assert expected in page.open_text


def test_the_index_shows_what_the_audit_advises_as_text(run):
    folder = run / FIRST
    findings = {"headline": EVIL + " advises", "certainty": "Firm.", "sections": {"What fails": [EVIL + " fails"]}}
    (folder / "findings.json").write_text(json.dumps(findings))
    meta = json.loads((folder / "meta.json").read_text())
    meta["outputs"]["findings.json"] = "c0ffee"
    (folder / "meta.json").write_text(json.dumps(meta))
    page = Page(write_index(run).read_text())
    assert "script" not in page.tags
    for expected in ("What the audit advises", EVIL + " advises", "Firm.", "What fails", EVIL + " fails"):
        assert expected in page.open_text


def compared(run: Path) -> None:
    """Add a tuned system, its comparison and the second plot to the evaluation of a run."""
    systems = METRICS["systems"] | {
        "retriever": {"test": {"ndcg@10": {"mean": 0.625, "ci": None, "n": 20, "scored": 20}}}
    }
    entry = {
        "split": "test", "metric": "ndcg@10", "baseline": "base", "system": "retriever", "difference": 0.125,
        "ci": [0.05, 0.2], "p_value": 0.01, "p_holm": 0.02, "n": 18,
    }  # fmt: skip
    folder = run / SECOND
    (folder / "metrics.json").write_text(json.dumps({"systems": systems, "comparisons": [entry]}))
    verdict = {"headline": "It rose.", "certainty": EVIL + " firm", "sections": {"": ["one"]}}
    (folder / "verdict.json").write_text(json.dumps(verdict))
    (folder / "differences.png").write_bytes(png())


def test_the_index_shows_before_and_after_with_the_paired_comparison(run):
    compared(run)
    page = Page(write_index(run).read_text())
    assert "script" not in page.tags
    text = page.open_text
    for expected in (
        "It rose.",
        EVIL + " firm",
        "base 0.500",
        "retriever 0.625",
        "+0.125 [+0.050, +0.200]",
        "better",
        "On test",
        "0.625 +0.125",
    ):
        assert expected in text
    assert text.index("It rose.") < text.index("Before and after") < text.index("base on test")
    assert len(page.loads) == 2
    assert all(load.startswith("data:image/png;base64,") for load in page.loads)


def test_the_index_of_a_run_without_comparisons_shows_no_empty_table(run):
    assert "Before and after" not in Page(write_index(run).read_text()).open_text


def test_the_index_of_a_run_without_the_evaluation_shows_neither_table(run):
    compared(run)
    (run / SECOND / "meta.json").unlink()
    text = Page(write_index(run).read_text()).open_text
    assert "Before and after" not in text
    assert "The evaluation has not run yet." in text


def test_the_index_loads_only_its_plot_and_links_the_reports_that_are_there(run):
    page = Page(write_index(run).read_text())
    picture = base64.b64encode((run / SECOND / "metrics.png").read_bytes()).decode()
    assert page.loads == [f"data:image/png;base64,{picture}"]
    assert page.links == [f"{FIRST}/report.html"]
    assert not re.search(r"url\(|@import", page.style)


def test_the_index_gives_the_parameters_as_a_params_file(run):
    block = re.search(r"<pre>(.*?)</pre>", write_index(run).read_text(), re.DOTALL)[1]
    assert yaml.safe_load(html.unescape(block)) == {name: value for name, value in VALUES.items() if name != "run"}


def test_the_index_names_every_hash_and_version(run):
    text = Page(write_index(run).read_text()).open_text
    assert f"{SECOND} reads collectionc0ffee" in text
    assert f"{FIRST}/a.txt{hashlib.sha256(b'hello').hexdigest()}" in text
    assert f"{SECOND}/metrics.png{hashlib.sha256((run / SECOND / 'metrics.png').read_bytes()).hexdigest()}" in text
    assert "Commit unknown" in text


def test_the_index_shortens_absolute_paths(run):
    stage = begin_stage(FIRST, "runs/x", {**VALUES, "collection": "/data/private/covid"})
    (stage.folder / "a.txt").write_text("hello")
    stage.finish()
    (run / SECOND / "meta.json").unlink()
    text = write_index(run).read_text()
    assert "/data/private" not in text
    assert str(run.parents[1]) not in text


def test_the_index_of_an_unfinished_run_says_so(run):
    (run / SECOND / "meta.json").unlink()
    text = Page(write_index(run).read_text()).open_text
    assert "The evaluation has not run yet." in text
    assert f"{SECOND}not run yet" in text
    assert "Measured" not in text
