"""The page says what results.json says, of itself alone, whatever titles hold."""

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml

from dmsrec_jax import neighbors, report_figures
from dmsrec_jax.config import NeighborsConfig, ReportConfig
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.data.samples import last_clicks, prefixes
from dmsrec_jax.data.write import Prepared, write_dataset
from dmsrec_jax.files import write_json
from dmsrec_jax.metrics import METRICS, VIEWS, summarise
from dmsrec_jax.report import figures, main
from dmsrec_jax.report_data import JudgedRun, groups, published, read_runs, sweeps
from dmsrec_jax.report_examples import choose
from dmsrec_jax.results import dataset_identity, write_ranks, write_results
from dmsrec_jax.train import main as train
from tests.conftest import N_ITEMS, SMALL, random_sessions, write_tiny_intents

HOSTILE = '<script>alert(1)</script><img src="https://evil.example/x.png" onerror=alert(2)>&amp; "\'`| $x_1$'
VOID = {"meta", "img", "br"}


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and keeps what a browser would follow, run or show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & {*self.open}:
            self.rows[-1][-1] += data + " " if "small" in self.open else data


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> SessionDataset:
    """The tiny data set, every title of which would be code if it were not escaped."""
    train_part, test_part = random_sessions(0, 45), random_sessions(1, 15)
    titles = [f"{HOSTILE} {i}" for i in range(N_ITEMS)]
    ids = [f"raw-{i}" for i in range(N_ITEMS)]
    prepared = Prepared(prefixes(train_part), prefixes(test_part), train_part, ids, titles)
    return write_dataset(prepared, tmp_path_factory.mktemp("report") / "data", name="beauty", provenance={})


@pytest.fixture(scope="module")
def runs(hostile: SessionDataset, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    intents = write_tiny_intents(folder / "intents", hostile)
    about = json.loads((intents / "meta.json").read_text())
    write_json(intents / "meta.json", about | {"provenance": {"engine_label": f"no LLM {HOSTILE}"}})
    flags = ("--backbone", "gcegnn", "--dataset", hostile.path, *SMALL)
    settings = {"plain": (), "fused": ("--intents", intents), "half": ("--intents", intents, "--align-weight", 0.35)}
    settings["infonce"] = ("--intents", intents, "--align", "infonce")
    settings["alpha"] = ("--intents", intents, "--alpha", 0.5)
    for name, more in settings.items():
        train([str(word) for word in (*flags, "--out", folder / name, *more)])
    neighbors.neighbors(NeighborsConfig(hostile.path, folder / "neighbors", ("pop", "sr")))
    names = {name: folder / name for name in settings}
    return names | {name: folder / "neighbors" / name for name in ("pop", "sr")}


@pytest.fixture(scope="module")
def report(runs: dict[str, Path], tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "report"
    main([*map(str, runs.values()), "--out", str(out), "--bootstrap", "50"])
    return out


def test_page_is_whole_and_needs_nothing_else(report: Path):
    text = (report / "report.html").read_text()
    page = Page(text)
    assert page.links, "figures"
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "link", "iframe", "object", "embed", "form", "a", "base"} & {*page.tags}
    assert re.findall(r"url\(|@import", text) == []
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text, "titles are shown"


def test_numbers_are_those_of_the_results(report: Path, runs: dict[str, Path]):
    rows = Page((report / "report.html").read_text()).rows
    markdown = (report / "results.md").read_text()
    for name, run in runs.items():
        results = json.loads((run / "results.json").read_text())["test"]
        due = [[f"{results[view][metric]:.2f}" for metric in METRICS] for view in VIEWS]
        of_run = [row[1:] for row in rows if row[0].split(" [")[0] == name and len(row) == len(METRICS) + 1]
        assert [[cell.split("±")[0] for cell in row] for row in of_run[:2]] == due
        assert all(f"| {number} ±" in markdown for number in due[0])


def test_sessions_that_rows_come_from_are_counted(report: Path, hostile: SessionDataset):
    """Those of one click have no row."""
    whole = int((hostile.sessions.lengths > 1).sum())
    assert whole < len(hostile.sessions)
    text = (report / "report.html").read_text()
    assert f"{len(hostile.train)} training and" in text
    assert f"(prefixes of {whole} and" in text


def test_paper_rows_and_differences(report: Path, runs: dict[str, Path]):
    text = (report / "report.html").read_text()
    rows = {row[0]: row[1:] for row in Page(text).rows}
    assert rows["GCE-GNN (paper, Table 2)"][:6] == ["8.87", "13.45", "18.85", "4.31", "4.93", "5.30"]
    assert rows["w/o KL (paper, Table 3)"][2] == "16.92"
    assert "Differences from plain" in text
    ranks = [np.load(runs[name] / "ranks.npy") for name in ("sr", "plain")]
    gain, base = (summarise(r)["exclude_seen"]["mrr@20"] for r in ranks)
    assert rows["sr"][5].startswith(f"{gain - base:+.2f}"), "the last table: differences with seen items excluded"
    assert published("demo", ["gcegnn"])[1] == []


def test_figures_lie_beside_the_page(report: Path):
    files = {file.name for file in report.glob("*.png")}
    assert files == {"curves.png", "groups.png", "intents-1.png", "sweep-1.png", "sweep-2.png", "sweep-3.png"}
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in report.glob("*.png"))
    text = (report / "report.html").read_text()
    assert all(f"Figure {number}" in text for number in (3, 4, 5, 6))


def test_examples_show_the_way_of_ten_sessions(report: Path, hostile: SessionDataset):
    text = (report / "report.html").read_text()
    assert text.count('<section class="example">') == min(10, len(np.unique(hostile.test.chains)))
    assert (
        text.count("<h4>Before: plain, target ") == text.count("<h4>After: fused [no LLM") == text.count("<h4>Latent")
    )
    assert "No LLM took part in fused, half, infonce, alpha" in text


def test_before_and_after_are_one_backbone_with_real_intents(runs: dict[str, Path], tmp_path):
    other = shutil.copytree(runs["plain"], tmp_path / "other")
    results = json.loads((other / "results.json").read_text())
    write_json(other / "results.json", results | {"model": "srgnn"})
    _, (stranger, fused, plain, half) = read_runs(
        ReportConfig((other, runs["fused"], runs["plain"], runs["half"]), dataset=None)
    )
    intents = fused.results["intents"]
    provenance = intents["provenance"] | {"placebo": "shuffled"}
    placebo = fused._replace(results=fused.results | {"intents": intents | {"provenance": provenance}})

    def chosen(*given: JudgedRun) -> tuple[list[int], bool]:
        found, is_pair = choose(given)
        return [next(i for i, run in enumerate(given) if run is one) for one in found], is_pair

    assert chosen(stranger, placebo, plain, fused, half) == ([2, 3], True)
    assert chosen(plain, stranger, placebo) == ([0, 2], False)
    assert chosen(stranger, placebo, fused) == ([0, 2], False)
    assert chosen(fused) == ([0], False)
    assert chosen() == ([], False)
    main([str(other), str(runs["fused"]), "--out", str(tmp_path / "page"), "--bootstrap", "10"])
    text = (tmp_path / "page/report.html").read_text()
    assert not re.search("Before|After", text)
    assert text.count("<h4>other, target ") == text.count("<h4>fused [no LLM") == 10


def test_sweeps_say_how_many_runs_a_place_has(report: Path, runs: dict[str, Path], tmp_path):
    assert "1 run at each place" in (report / "report.html").read_text()
    again = shutil.copytree(runs["half"], tmp_path / "again")
    settings = yaml.safe_load((again / "config.yaml").read_text())
    (again / "config.yaml").write_text(yaml.safe_dump(settings | {"seed": 7}))
    _, read = read_runs(ReportConfig((runs["fused"], runs["half"], again)))
    (found,) = sweeps(read)
    assert (found.places, found.runs) == ([(0.35,), (0.7,)], [2, 1])
    twice = sweeps([*read, read[0]._replace(path=read[1].path)])
    assert [one.runs for one in twice] == [[2, 1]], "one of two plans counts once"
    about = json.loads((again / "model.json").read_text())
    other = about | {"inputs": about["inputs"] | {"intents": "of another engine, in the same place"}}
    write_json(again / "model.json", other)
    assert [one.runs for one in sweeps(read)] == [[1, 1]]
    write_json(again / "model.json", about)
    assert [drawn.caption for drawn in figures(read[0].dataset, read) if drawn.section == "Settings"] == [
        "The paper's Figure 5: weight of the alignment; test set, the mean of 1 to 2 runs that differ in their seed "
        "alone at each place."
    ]


def test_sessions_longer_than_the_catalogue(tmp_path):
    """Of five items, four of which a session clicks again and again."""
    parts = [random_sessions(seed, 30, n_items=5, longest=12) for seed in range(2)]
    ids = [f"raw-{i}" for i in range(5)]
    prepared = Prepared(prefixes(parts[0]), prefixes(parts[1]), parts[0], ids, ids)
    data = write_dataset(prepared, tmp_path / "data", name="narrow", provenance={})
    assert data.longest > data.n_items
    train([str(word) for word in ("--backbone", "srgnn", "--dataset", data.path, "--out", tmp_path / "run", *SMALL)])
    main([str(tmp_path / "run"), "--out", str(tmp_path / "page"), "--bootstrap", "10"])
    shown = (tmp_path / "page/report.html").read_text().split('<section class="example">')[1:]
    assert len(shown) == 10
    for session in shown:
        clicks, recommended = (set(re.findall(r"raw-\d", part)) for part in session.split("<h4>")[1:])
        assert recommended == {*ids} - clicks


def edit(**changes):
    def damage(run: Path) -> None:
        results = json.loads((run / "results.json").read_text())
        write_json(run / "results.json", results | changes)

    return damage


def history(lines: str):
    return lambda run: (run / "metrics.jsonl").write_text(lines)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (edit(model=None), "results.json: not a run's results: model"),
        (edit(protocol=None), "results.json: not a run's results: protocol"),
        (edit(best_epoch="one"), "results.json: not a run's results: best_epoch"),
        (edit(best_epoch=99), "results.json: best_epoch 99: metrics.jsonl has 2 epochs"),
        (edit(intents="x"), "results.json: not a run's results: intents"),
        (edit(train_seconds="abc"), "results.json: not a run's results: train_seconds"),
        (history('{"epoch": 1}\n'), "metrics.jsonl: line 1 is not an epoch of `train`"),
        (history("[1]\n"), "metrics.jsonl: line 1 is not an epoch of `train`"),
        (history("{\n"), "metrics.jsonl: not valid JSON"),
    ],
)
def test_damaged_runs_are_one_line(runs: dict[str, Path], tmp_path, refused, damage, named):
    run = shutil.copytree(runs["plain"], tmp_path / "run")
    damage(run)
    assert f"{run}/{named}" in refused(main, run, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_history_is_of_one_kind(runs: dict[str, Path], tmp_path, refused):
    run = shutil.copytree(runs["plain"], tmp_path / "run")
    first, second = (run / "metrics.jsonl").read_text().splitlines()
    history(f"{first}\n{second.replace('validation', 'test')}\n")(run)
    assert "metrics.jsonl: line 2 is not" in refused(main, run, "--out", tmp_path / "out")


def test_written_again_only_with_overwrite(report: Path, runs: dict[str, Path], tmp_path, refused):
    again = tmp_path / "again"
    shutil.copytree(report, again)
    flags = [*runs.values(), "--out", again, "--bootstrap", 50]
    assert "give --overwrite" in refused(main, *flags)
    main([str(word) for word in (*flags, "--overwrite")])
    same = {file.name: file.read_bytes() for file in report.iterdir()}
    assert {file.name: file.read_bytes() for file in again.iterdir()} == same


def test_references_alone_and_bad_input(runs: dict[str, Path], tiny: SessionDataset, tmp_path, refused):
    main([str(runs["pop"]), "--out", str(tmp_path / "one"), "--bootstrap", "10"])
    text = (tmp_path / "one/report.html").read_text()
    assert "Example sessions" not in text
    assert "Differences" not in text
    assert "nowhere" in refused(main, tmp_path / "nowhere", "--out", tmp_path / "out")
    (tmp_path / "imported").mkdir()
    write_json(tmp_path / "imported/model.json", {})
    line = refused(main, tmp_path / "imported", "--out", tmp_path / "out")
    assert f"evaluate --run {tmp_path / 'imported'} makes them" in line
    assert "--bootstrap 1" in refused(main, runs["pop"], "--out", tmp_path / "out", "--bootstrap", 1)
    assert "--seed -1: at least 0" in refused(main, runs["pop"], "--out", tmp_path / "out", "--seed", -1)
    ranks = np.ones((len(tiny.test), 2), np.int32)
    other = {"test": summarise(ranks), "protocol": "default", "model": "m", "dataset": dataset_identity(tiny)}
    write_results(tmp_path / "other", other)
    write_ranks(tmp_path / "other", ranks)
    assert "another dataset" in refused(main, runs["pop"], tmp_path / "other", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_training_rows_and_moved_intents(runs: dict[str, Path], hostile: SessionDataset, tmp_path):
    """A run on last clicks beside one on prefixes; intents that are gone are said to be, and leave no figure."""
    names = hostile.item_ids[1:], hostile.titles[1:]
    prepared = Prepared(last_clicks(hostile.sessions), hostile.test, hostile.sessions, *names)
    other = write_dataset(prepared, tmp_path / "last", name="last", provenance={})
    intents = write_tiny_intents(tmp_path / "intents", other)
    flags = ("--backbone", "srgnn", "--dataset", other.path, "--intents", intents, *SMALL)
    train([str(word) for word in (*flags, "--out", tmp_path / "fused")])
    call = [str(runs["plain"]), str(tmp_path / "fused"), "--bootstrap", "10", "--out"]
    main([*call, str(tmp_path / "there")])
    assert (tmp_path / "there/intents-1.png").exists()
    assert "no longer there" not in (tmp_path / "there/report.html").read_text()
    shutil.move(intents, tmp_path / "elsewhere")
    main([*call, str(tmp_path / "gone")])
    write_tiny_intents(intents, other, seed=1)
    main([*call, str(tmp_path / "changed")])
    for name in ("gone", "changed"):
        assert not (tmp_path / name / "intents-1.png").exists()
        assert "no longer there" in (tmp_path / name / "report.html").read_text()


def test_long_names_keep_what_tells_them_apart():
    paths = [f"/home/user/projects/dmsrec/results/{name}/gcegnn-plain" for name in ("ml-1m", "beauty")]
    shown = [report_figures._text(path) for path in paths]
    assert [text[-19:] for text in shown] == [path[-19:] for path in paths]
    assert {len(text) for text in shown} == {report_figures.LABEL}


def test_groups_cover_all_values():
    values = np.random.default_rng(0).poisson(6, 500)
    found = groups(values)
    assert np.bincount(found.of).min() > 0
    assert len(found.names) == found.of.max() + 1 <= 6
    low, high = (max(values[found.of == 1]), min(values[found.of == 2]))
    assert low < high, "ranges ascend"
    assert groups(np.full(7, 3)).names == ["3"]


def test_a_browser_shows_it_without_complaint(report: Path, tmp_path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")
    quiet += (
        "--no-first-run",
        "--disable-component-update",
        "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path}/user",
    )
    picture = tmp_path / "page.png"
    words = [chromium, *quiet, "--enable-logging=stderr", "--v=0", f"--screenshot={picture}", "--window-size=1200,2000"]
    url = (report / "report.html").as_uri()
    shown = subprocess.run([*words, url], capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    assert "CONSOLE" not in shown.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    dumped = subprocess.run([chromium, *quiet, "--dump-dom", url], capture_output=True, text=True, timeout=120)
    assert dumped.stdout.count('<img src="data:') == (report / "report.html").read_text().count('<img src="data:')
    assert "<script" not in dumped.stdout
