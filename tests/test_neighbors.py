import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from dmsrec_jax.cli import run
from dmsrec_jax.config import NeighborsConfig
from dmsrec_jax.data import Sessions, Split
from dmsrec_jax.data.demo import prepare_demo
from dmsrec_jax.data.splits import validation_split
from dmsrec_jax.data.write import write_dataset
from dmsrec_jax.metrics import summarise
from dmsrec_jax.neighbor_methods import METHODS, fit_rules, fit_vsknn
from dmsrec_jax.neighbors import neighbors, rank_split
from dmsrec_jax.results import read_ranks, read_results

SHARED = Path(os.environ.get("DMSREC_SHARED", Path(__file__).parents[1] / "../shared"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("neighbors") / "demo"
    return write_dataset(prepare_demo(), out, name="demo", provenance={})


@pytest.fixture(scope="module")
def runs(demo, tmp_path_factory):
    out = tmp_path_factory.mktemp("neighbors") / "runs"
    neighbors(NeighborsConfig(demo.path, out))
    return out


def test_command_writes_a_run_folder_per_method(runs, demo):
    assert {path.name for path in runs.iterdir()} == set(METHODS)
    for name, method in METHODS.items():
        ranks = read_ranks(runs / name, len(demo.test))
        results = read_results(runs / name)
        assert results["test"] == summarise(ranks)
        assert results["model"] == name
        assert results["protocol"] == "default"
        assert results["dataset"]["hash"] == demo.hash
        chosen = yaml.safe_load((runs / name / "config.yaml").read_text())
        assert all(chosen[setting] in values for setting, values in method.grid.items())
    hit_rates = {name: read_results(runs / name)["test"]["exclude_seen"]["hr@20"] for name in METHODS}
    assert min(hit_rates, key=hit_rates.__getitem__) == "pop"


def test_the_chosen_settings_are_the_best_on_validation(runs, demo):
    _, valid, earlier = validation_split(demo, 0.1)
    scores = {
        k: summarise(rank_split(fit_vsknn(earlier, demo.n_items, k=k), valid, lambda _: None))
        for k in METHODS["vsknn"].grid["k"]
    }
    best = max(scores, key=lambda k: scores[k]["exclude_seen"]["mrr@20"])
    assert yaml.safe_load((runs / "vsknn/config.yaml").read_text())["k"] == best
    assert json.loads((runs / "vsknn/results.json").read_text())["validation"] == scores[best]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--methods", "pop", "gru4rec"], "gru4rec"),
        (["--methods", "pop"], "exists already"),
        (["--methods", "pop", "--overwrite", "--validation-fraction", "1.0"], "--validation-fraction"),
        *(
            (["--validation-fraction", word], f"--validation-fraction {float(word)}: at least 0 and below 1 is due")
            for word in ("nan", "inf", "7", "-1")
        ),
        (["--out", __file__], f"--out {__file__}: exists and is not a folder"),
        (["--dataset", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(flags, named, demo, runs, capsys):
    before = (runs / "pop/results.json").read_bytes()
    with pytest.raises(SystemExit) as stop:
        run(neighbors, NeighborsConfig, ["--dataset", str(demo.path), "--out", str(runs), *flags], prog="neighbors")
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert named in message
    assert message.count("\n") == 1
    assert (runs / "pop/results.json").read_bytes() == before
    assert {path.name for path in runs.iterdir()} == set(METHODS)


def test_a_model_is_never_replaced(demo, tmp_path, refused):
    for name in ("model.json", "results.json"):
        (tmp_path / "pop").mkdir(exist_ok=True)
        (tmp_path / "pop" / name).write_text("{}")
    flags = ("--dataset", demo.path, "--out", tmp_path, "--methods", "pop", "--overwrite")

    def main(argv: list[str]) -> None:
        run(neighbors, NeighborsConfig, argv, prog="neighbors")

    assert "pop holds a model" in refused(main, *flags)
    assert (tmp_path / "pop/model.json").exists()


def test_a_method_named_twice_counts_once(demo, tmp_path):
    flags = ("--dataset", str(demo.path), "--out", str(tmp_path), "--methods", "pop", "pop")
    run(neighbors, NeighborsConfig, flags, prog="neighbors")
    assert [path.name for path in tmp_path.iterdir()] == ["pop"]


@pytest.mark.parametrize(
    ("name", "settings", "hit_rate", "mrr"),
    [
        ("ml-1m", {"decay": 0.7, "source_damping": 0.5, "target_damping": 0.25}, 15.5, 4.9),
        ("beauty", {"decay": 0.5, "source_damping": 0.5, "target_damping": 0.0}, 17.7, 7.6),
    ],
)
def test_sequential_rules_reach_the_known_figures(name, settings, hit_rate, mrr):
    path = SHARED / "data" / name / "sessions.npz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    with np.load(path, allow_pickle=False) as raw:
        test = Split(raw["test_items"], raw["test_offsets"], raw["test_targets"], np.arange(len(raw["test_targets"])))
        sessions = Sessions(raw["all_items"], raw["all_offsets"])
    scorer = fit_rules(sessions, int(sessions.items.max()), **settings, steps=10)
    scores = summarise(rank_split(scorer, test, lambda _: None))["exclude_seen"]
    assert scores["hr@20"] == pytest.approx(hit_rate, abs=0.25)
    assert scores["mrr@20"] == pytest.approx(mrr, abs=0.1)
