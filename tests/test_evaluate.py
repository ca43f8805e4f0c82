import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dmsrec_jax.cli import run
from dmsrec_jax.config import EvaluateConfig
from dmsrec_jax.data import Sessions
from dmsrec_jax.data.demo import prepare_demo
from dmsrec_jax.data.samples import prefixes
from dmsrec_jax.data.write import Prepared, write_dataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.evaluate import evaluate
from dmsrec_jax.files import locked, write_json
from dmsrec_jax.metrics import METRICS, VIEWS, summarise
from dmsrec_jax.results import (
    dataset_identity,
    dataset_of,
    read_ranks,
    read_results,
    run_names,
    write_ranks,
    write_results,
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return write_dataset(prepare_demo(), tmp_path_factory.mktemp("evaluate") / "demo", name="demo", provenance={})


@pytest.fixture
def make_run(demo, tmp_path):
    def make(name, seed=0, shift=0, **about):
        ranks = np.random.default_rng(seed).integers(1, 60, (len(demo.test), 2), dtype=np.int32) + shift
        path = tmp_path / name
        write_ranks(path, ranks)
        results = {"test": summarise(ranks), "protocol": "default", "model": name, "dataset": dataset_identity(demo)}
        write_results(path, results | about)
        return path, ranks

    return make


def console() -> Console:
    return Console(record=True, width=100, file=io.StringIO())


def test_report_keeps_what_training_wrote_and_adds_intervals(make_run):
    path, ranks = make_run("a", seed=0, epochs=7)
    screen = console()
    evaluate(EvaluateConfig(path, bootstrap=200), screen)
    results = read_results(path)
    assert results["epochs"] == 7
    assert results["test"] == {v: {m: pytest.approx(x) for m, x in row.items()} for v, row in summarise(ranks).items()}
    for view in VIEWS:
        for metric in METRICS:
            low, high = results["intervals"][view][metric]
            assert low < results["test"][view][metric] < high
    text = screen.export_text()
    assert "the paper's P@K" in text
    assert f"{results['test']['raw']['hr@20']:.2f}" in text
    assert "TEST SET" not in text


def test_same_seed_same_file(make_run):
    path, _ = make_run("a")
    evaluate(EvaluateConfig(path, bootstrap=50), console())
    first = (path / "results.json").read_bytes()
    evaluate(EvaluateConfig(path, bootstrap=50), console())
    assert (path / "results.json").read_bytes() == first


def test_compare_is_paired(make_run):
    better, ranks = make_run("better")
    worse, shifted = make_run("worse", shift=3)
    screen = console()
    evaluate(EvaluateConfig(better, compare=worse, bootstrap=200), screen)
    differences = read_results(better)["differences"][str(worse)]
    assert differences["raw"]["hr@10"][0] == pytest.approx(
        summarise(ranks)["raw"]["hr@10"] - summarise(shifted)["raw"]["hr@10"]
    )
    assert all(low > 0 for row in differences.values() for _, low, _ in row.values())
    text = screen.export_text()
    assert "better − worse" in text
    assert f"{differences['raw']['hr@10'][0]:+.2f}*" in text
    assert "differences" not in read_results(worse)

    evaluate(EvaluateConfig(better, compare=better, bootstrap=50), screen)
    same = read_results(better)["differences"][str(better)]
    assert all(values == [0, 0, 0] for row in same.values() for values in row.values())


def test_paper_protocol_keeps_its_numbers_and_is_labelled(make_run):
    path, ranks = make_run("p", protocol="paper", test=summarise(np.ones((4, 2), np.int32)))
    screen = console()
    evaluate(EvaluateConfig(path, bootstrap=50), screen)
    results = read_results(path)
    assert results["test"]["raw"]["hr@20"] == 100
    low, high = results["intervals"]["raw"]["hr@20"]
    assert low < summarise(ranks)["raw"]["hr@20"] < high
    text = screen.export_text()
    assert "p†" in text
    assert "SELECTED ON THE TEST SET" in " ".join(text.split())


def test_a_model_without_ranks_is_scored_once(demo, tmp_path, monkeypatch):
    runs = pytest.importorskip("dmsrec_jax.runs")
    path = tmp_path / "imported"
    write_json(path / "model.json", {"settings": {"backbone": "gcegnn"}, "dataset": dataset_identity(demo)})
    ranks = np.full((len(demo.test), 2), 4, np.int32)
    calls = []

    class Model:
        def score_test(self):
            calls.append(1)
            return ranks

    monkeypatch.setattr(runs, "load_run", lambda *_: Model())
    for _ in range(2):
        evaluate(EvaluateConfig(path, bootstrap=10), console())
    assert len(calls) == 1
    results = read_results(path)
    assert results["model"] == "gcegnn"
    assert results["test"]["raw"]["mrr@5"] == pytest.approx(25)


def test_an_unfinished_training_is_no_model_without_results(demo, tmp_path):
    """It would count as one of the default protocol, and be final."""
    write_json(tmp_path / "model.json", {"settings": {"backbone": "gcegnn"}, "dataset": dataset_identity(demo)})
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(InputError, match=r"training has not come to its end; .* --resume"):
        evaluate(EvaluateConfig(tmp_path), console())


def test_what_others_wrote_in_the_meantime_stays(make_run, monkeypatch):
    path, _ = make_run("a")
    others = [make_run(name, seed)[0] for seed, name in enumerate("bc", start=1)]
    inner = iter([lambda: evaluate(EvaluateConfig(path, compare=others[1], bootstrap=10), console())])

    def reads(*args):
        next(inner, lambda: None)()
        return dataset_of(*args)

    monkeypatch.setattr("dmsrec_jax.evaluate.dataset_of", reads)
    evaluate(EvaluateConfig(path, compare=others[0], bootstrap=10), console())
    assert set(read_results(path)["differences"]) == {str(other) for other in others}

    inner = iter([lambda: None, lambda: make_run("a", seed=7)])
    with pytest.raises(InputError, match="made anew"):
        evaluate(EvaluateConfig(path, compare=others[0], bootstrap=10), console())
    assert "intervals" not in read_results(path)


def test_a_run_that_is_being_trained_is_left_alone(make_run):
    path, _ = make_run("a")
    with locked(path), pytest.raises(InputError, match="another process is at work"):
        evaluate(EvaluateConfig(path, bootstrap=10), console())


@pytest.mark.parametrize(("n", "told_apart"), [(5, False), (6, True)])
def test_a_handful_of_sessions_tells_nothing_apart(tmp_path, n, told_apart):
    sessions = Sessions(np.tile(np.array([1, 2, 3], np.int32), n), np.arange(n + 1) * 3)
    prepared = Prepared(prefixes(sessions), prefixes(sessions), sessions, ["a", "b", "c"], None)
    data = write_dataset(prepared, tmp_path / "few", name="few", provenance={})
    for name, rank in (("best", 1), ("worst", 3)):
        ranks = np.full((len(data.test), 2), rank, np.int32)
        write_ranks(tmp_path / name, ranks)
        about = {"test": summarise(ranks), "protocol": "default", "model": name, "dataset": dataset_identity(data)}
        write_results(tmp_path / name, about)
    evaluate(EvaluateConfig(tmp_path / "best", compare=tmp_path / "worst", bootstrap=50), screen := console())
    assert ("*" in screen.export_text().split("seen items kept")[-1].split("Percent")[0]) == told_apart


def damage_by_removal(path, demo):
    (path / "results.json").unlink()


def damage_ranks_size(path, demo):
    write_ranks(path, np.ones((len(demo.test) - 1, 2), np.int32))


def damage_ranks_value(path, demo):
    write_ranks(path, np.zeros((len(demo.test), 2), np.int32))


def damage_ranks_objects(path, demo):
    np.save(path / "ranks.npy", np.array([[{}]], dtype=object), allow_pickle=True)


def damage_ranks_truncated(path, demo):
    (path / "ranks.npy").write_bytes((path / "ranks.npy").read_bytes()[:100])


def damage_results_json(path, demo):
    (path / "results.json").write_text("{")


def damage_results_metric(path, demo):
    results = json.loads((path / "results.json").read_text())
    del results["test"]["raw"]["mrr@20"]
    write_json(path / "results.json", results)


def damage_dataset_hash(path, demo):
    results = json.loads((path / "results.json").read_text())
    results["dataset"]["hash"] = "0" * 64
    write_json(path / "results.json", results)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("test", 5),
        ("protocol", None),
        ("model", None),
        ("dataset", {"path": 1, "hash": "0"}),
        ("intents", "x"),
        ("intents", {"path": "x", "provenance": "x"}),
        ("item_text", {}),
        ("best_epoch", "one"),
        ("best_epoch", 0),
        ("validation", {"raw": {}}),
        ("train_seconds", "abc"),
        ("seconds", None),
        ("test_no_intent", []),
        ("std", 5),
        ("intervals", {view: {metric: [0] for metric in METRICS} for view in VIEWS}),
        ("differences", "x"),
        ("differences", {"other": {view: dict.fromkeys(METRICS, 0) for view in VIEWS}}),
    ],
)
def test_results_of_another_form_are_one_line(key, value, make_run):
    path, _ = make_run("a", **{key: value})
    with pytest.raises(InputError, match=f"^{path / 'results.json'}: not a run's results: {key} is not as it should"):
        read_results(path)


@pytest.mark.parametrize("key", ["test", "protocol", "model", "dataset"])
def test_results_that_lack_something_say_what(key, make_run):
    path, _ = make_run("a")
    results = json.loads((path / "results.json").read_text())
    del results[key]
    write_json(path / "results.json", results)
    with pytest.raises(InputError, match=f"{key} is missing"):
        read_results(path)
    write_json(path / "results.json", [])
    with pytest.raises(InputError, match="not a run's results"):
        read_results(path)


def test_wrong_ranks_say_what_is_wrong(make_run, demo):
    path, ranks = make_run("a")
    with pytest.raises(InputError, match=rf"ranks.npy: of shape \({len(ranks)}, 2\); \(7, 2\) is due"):
        read_ranks(path, 7)
    ranks[3, 1] = 0
    write_ranks(path, ranks)
    with pytest.raises(InputError, match=r"ranks.npy: row 3 holds a rank below 1"):
        read_ranks(path, len(ranks))


@pytest.mark.parametrize("role", ["run", "compare"])
@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (damage_by_removal, "results.json"),
        (damage_ranks_size, "ranks.npy"),
        (damage_ranks_value, "ranks.npy"),
        (damage_ranks_objects, "ranks.npy"),
        (damage_ranks_truncated, "ranks.npy"),
        (damage_results_json, "results.json"),
        (damage_results_metric, "results.json"),
        (damage_dataset_hash, "another dataset"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(damage, named, role, make_run, demo, capsys):
    good, _ = make_run("good")
    bad, _ = make_run("bad")
    damage(bad, demo)
    pair = [bad, good] if role == "run" else [good, bad]
    before = (good / "results.json").read_bytes()
    with pytest.raises(SystemExit) as stop:
        run(evaluate, EvaluateConfig, ["--run", str(pair[0]), "--compare", str(pair[1])], prog="evaluate")
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert named in message
    assert "bad" in message
    assert message.count("\n") == 1
    assert (good / "results.json").read_bytes() == before


def test_another_dataset_is_refused(make_run, demo, tmp_path, capsys):
    path, _ = make_run("a")
    other = write_dataset(prepare_demo(seed=1), tmp_path / "other", name="demo", provenance={})
    with pytest.raises(SystemExit):
        run(evaluate, EvaluateConfig, ["--run", str(path), "--dataset", str(other.path)], prog="evaluate")
    assert "another dataset" in capsys.readouterr().err
    for flag, value in (("--bootstrap", "1"), ("--seed", "-1")):
        with pytest.raises(SystemExit):
            run(evaluate, EvaluateConfig, ["--run", str(path), flag, value], prog="evaluate")
        assert f"{flag} {value}: at least" in capsys.readouterr().err


def test_runs_are_called_by_what_tells_them_apart():
    runs = [Path(path) for path in ("runs/plain", "sweep/weak/seed-0", "sweep/strong/seed-0", "one/fused", "two/fused")]
    assert run_names(runs) == ["plain", "weak/seed-0", "strong/seed-0", "one/fused", "two/fused"]
    assert run_names(runs[3:4]) == ["fused"]
