import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dmsrec_jax.cli import run
from dmsrec_jax.config import EvaluateConfig, NeighborsConfig
from dmsrec_jax.data import SessionDataset, Split
from dmsrec_jax.data.samples import last_clicks
from dmsrec_jax.data.write import Prepared, write_dataset
from dmsrec_jax.ensemble import (
    UNIFORM,
    K,
    Source,
    all_weights,
    fuse,
    fused_ranks,
    fused_test_ranks,
    open_test,
    open_validation,
    pooled_ranks,
    pooled_test_ranks,
    smoothed,
)
from dmsrec_jax.evaluate import evaluate
from dmsrec_jax.metrics import out_of_reach, rank_targets, summarise
from dmsrec_jax.neighbors import neighbors
from dmsrec_jax.results import read_ranks, read_results
from dmsrec_jax.train import main as train
from tests.conftest import SMALL, write_tiny


def call(*argv: object) -> None:
    run(evaluate, EvaluateConfig, [str(word) for word in argv], prog="evaluate")


@pytest.fixture(scope="module")
def rules(tiny: SessionDataset, tmp_path_factory) -> Path:
    """Sequential rules on `tiny`."""
    out = tmp_path_factory.mktemp("ensemble") / "neighbors"
    neighbors(NeighborsConfig(tiny.path, out, methods=("sr",)), Console(file=io.StringIO()))
    return out / "sr"


def rules_of_last_clicks(tiny: SessionDataset, folder: Path) -> tuple[SessionDataset, Path]:
    """A data set with the test rows of `tiny` that trains on last clicks, and sequential rules of it."""
    prepared = Prepared(last_clicks(tiny.sessions), tiny.test, tiny.sessions, tiny.item_ids[1:], tiny.titles[1:])
    dataset = write_dataset(prepared, folder / "last", name="last", provenance={})
    neighbors(NeighborsConfig(dataset.path, folder / "rules", methods=("sr",)), Console(file=io.StringIO()))
    return dataset, folder / "rules" / "sr"


@pytest.fixture(scope="module")
def fused(tiny: SessionDataset, tiny_intents: Path, tmp_path_factory) -> Path:
    """A model with intents of the same data set."""
    run = tmp_path_factory.mktemp("ensemble") / "fused"
    inputs = ("--dataset", tiny.path, "--intents", tiny_intents)
    train([str(word) for word in ("--backbone", "srgnn", *inputs, "--out", run, *SMALL)])
    return run


@pytest.fixture
def model(trained: Path, tmp_path) -> Path:
    """A copy of the trained run, for `evaluate` writes into it."""
    return shutil.copytree(trained, tmp_path / "model")


def test_ties_share_their_worst_rank():
    fused = fuse([np.array([[9.0, 3.0, 1.0, 3.0, 0.0]]), np.array([[0.0, 1.0, 2.0, 3.0, 4.0]])])
    places = np.array([[2, 4], [3, 3], [2, 2], [4, 1]])
    np.testing.assert_allclose(fused, [[0, *(1 / (K + places)).sum(1)]])


def test_places_that_change_runs_are_a_tie():
    """1 / 61 + 1 / 62 + 1 / 67 is another number in floats where 1 / 67 is added before 1 / 62."""
    fused = fuse([-np.array([[0.0, *places, 3, 4, 5, 6]]) for places in ([1, 2, 7], [2, 7, 1], [7, 1, 2])])
    assert len(set(fused[0, 1:4].tolist())) == 1


def test_fusion_by_hand():
    """Against a plain loop, with seen items taken out of the lists before they are ranked."""
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 6, (8, 13)).astype(np.float32) for _ in range(2)]
    targets, rows = rng.integers(1, 13, 8), np.repeat(np.arange(8), 3)
    seen = np.concatenate([rng.choice([i for i in range(1, 13) if i != t], 3, replace=False) for t in targets])
    found = fused_ranks(lists, targets, rows, seen)
    for b, target in enumerate(targets):
        for view, gone in enumerate((set(), set(seen[rows == b].tolist()))):
            items = [item for item in range(1, 13) if item not in gone]

            def score(item, b=b, items=items):
                return sum(1 / (K + sum(scores[b, other] >= scores[b, item] for other in items)) for scores in lists)

            assert found[b, view] == sum(score(item) >= score(target) - 1e-12 for item in items)


def test_a_list_with_itself_keeps_its_order():
    scores = np.random.default_rng(1).normal(size=(20, 31)).astype(np.float32)
    targets, rows, seen = np.arange(1, 21), np.arange(20), np.full(20, 30)
    due = rank_targets(scores, targets, rows, seen)
    np.testing.assert_array_equal(fused_ranks([scores, scores], targets, rows, seen), due)


def test_both_kinds_of_runs_rank_again_as_they_did(tiny: SessionDataset, model: Path, rules: Path):
    batch = np.append(np.arange(len(tiny.test)), len(tiny.test)).astype(np.int32)
    for path in (rules, model):
        np.testing.assert_array_equal(fused_test_ranks(((path, tiny), (path, tiny))), read_ranks(path, len(tiny.test)))
    assert open_test(rules, tiny).scores(batch).shape == (len(batch), tiny.n_items + 1)


def test_smoothed_scores_are_probabilities():
    scores = np.array([[3.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    shares = np.array([[0.75, 0.0, 0.25, 0.0], [0.25] * 4])
    np.testing.assert_allclose(np.exp(smoothed(scores)), (1 - UNIFORM) * shares + UNIFORM / 4, rtol=1e-6)


def pooled_by_hand(sources, kinds, batch, split, weights) -> np.ndarray:
    """Ranks of the targets in the pool, by a loop over sessions; raw and without the session's own items."""
    of_runs = [source.scores(batch)[:, 1:] for source in sources]
    ranks = []
    for row, target in enumerate(split.targets[batch]):
        pool = np.ones(of_runs[0].shape[1])
        for kind, scores, weight in zip(kinds, of_runs, weights, strict=True):
            own = np.exp(scores[row] - scores[row].max()) if kind == "model" else scores[row]
            shares = own / own.sum() if own.any() else np.full(len(own), 1 / len(own))
            pool *= (shares if kind == "model" else (1 - UNIFORM) * shares + UNIFORM / len(own)) ** weight
        others = np.setdiff1d(np.arange(len(pool)), np.asarray(split[batch[row]]) - 1)
        raw, unseen = (sum(pool[of] >= pool[target - 1] * (1 - 1e-5)) for of in (slice(None), others))
        ranks.append([raw, unseen if target - 1 in others else out_of_reach(len(pool))])
    return np.array(ranks)


def test_weights_share_out_tenths():
    assert all_weights(2) == [(tenths / 10, (10 - tenths) / 10) for tenths in range(11)]
    assert len(set(all_weights(3))) == 66
    assert all(sum(weights) == pytest.approx(1.0) for weights in all_weights(3))


def test_what_all_runs_tie_the_pool_ties():
    """Wherever in the catalogue it stands, and however many runs there are."""
    n, n_items = 13, 1535
    part = Split(np.ones(n, np.int32), np.arange(n + 1), np.arange(2, n + 2, dtype=np.int32), np.arange(n))
    levels = np.random.default_rng(0).normal(size=4).astype(np.float32)
    sources = [Source(lambda _, x=x: np.full((n, n_items + 1), x), lambda scores: scores) for x in levels]
    ranks = pooled_ranks(part, sources, all_weights(4))
    assert all((of_weights == [n_items, n_items - 1]).all() for of_weights in ranks)


def test_pool_by_hand(tiny: SessionDataset, model: Path, rules: Path, fused: Path):
    kinds, batch = ("model", "neighbors", "model"), np.arange(len(tiny.test), dtype=np.int32)
    sources, tried = [open_test(path, tiny) for path in (model, rules, fused)], all_weights(3)[::6]
    for ranks, weights in zip(pooled_ranks(tiny.test, sources, tried), tried, strict=True):
        np.testing.assert_array_equal(ranks, pooled_by_hand(sources, kinds, batch, tiny.test, weights))


def test_validation_chooses_the_weights(tiny: SessionDataset, model: Path, rules: Path):
    runs = (model, tiny), (rules, tiny)
    valid, sources = open_validation(runs)
    tried = all_weights(2)
    found = [summarise(ranks)["exclude_seen"]["mrr@20"] for ranks in pooled_ranks(valid, sources, tried)]
    ranks, weights = pooled_test_ranks(runs)
    assert found[tried.index(weights)] == max(found) > min(found)
    sources = [open_test(*run) for run in runs]
    np.testing.assert_array_equal(ranks, pooled_ranks(tiny.test, sources, [weights])[0])


def test_validation_is_scored_as_the_runs_scored_it(tiny: SessionDataset, fused: Path, rules: Path):
    """With all weight on one run: the model that training kept, and the settings that `neighbors` chose."""
    valid, sources = open_validation([(fused, tiny), (rules, tiny)])
    batch = np.arange(len(valid), dtype=np.int32)
    rows = np.repeat(batch, valid.lengths)
    for path, source in zip((fused, rules), sources, strict=True):
        ranks = rank_targets(source.scores(batch), valid.targets, rows, valid.items)
        found, due = summarise(ranks), read_results(path)["validation"]
        assert found["exclude_seen"]["mrr@20"] == pytest.approx(due["exclude_seen"]["mrr@20"])


def test_command_fuses_by_scores(tiny: SessionDataset, model: Path, rules: Path, fused: Path, tmp_path, capsys):
    out, paths = tmp_path / "pool", (model, fused, rules)
    call("--run", model, "--fuse", fused, rules, "--fuse-by", "scores", "--out", out, "--bootstrap", 50)
    results, (ranks, weights) = read_results(out), pooled_test_ranks([(path, tiny) for path in paths])
    printed = capsys.readouterr().out
    assert f"weights, chosen on validation: model {weights[0]}, fused {weights[1]}, sr {weights[2]}" in printed
    assert (results["model"], results["weights"]) == ("pool(gcegnn, srgnn, sr)", list(weights))
    assert set(results["differences"]) == {str(path) for path in paths}
    np.testing.assert_array_equal(read_ranks(out, len(tiny.test)), ranks)


def test_several_runs_fuse_by_ranks(tiny: SessionDataset, model: Path, rules: Path, fused: Path, tmp_path):
    call("--run", model, "--fuse", fused, rules, "--out", tmp_path / "rrf", "--bootstrap", 50)
    due = fused_test_ranks([(path, tiny) for path in (model, fused, rules)])
    np.testing.assert_array_equal(read_ranks(tmp_path / "rrf", len(tiny.test)), due)


def test_intents_of_other_rows_choose_no_weight(tiny: SessionDataset, fused: Path, tmp_path, refused):
    """Rules of last clicks, a model with intents for prefixes: of prefixes both can be scored, of last clicks not."""
    _, rules = rules_of_last_clicks(tiny, tmp_path)
    flags = ("--fuse-by", "scores", "--bootstrap", 50)
    call("--run", fused, "--fuse", rules, *flags)
    error = refused(lambda argv: call(*argv), "--run", rules, "--fuse", fused, *flags)
    assert "its intents are of other rows" in error


def test_without_common_validation_no_weight_is_chosen(tiny, model: Path, rules: Path, tmp_path, refused):
    def error(*flags: object) -> str:
        return refused(lambda argv: call(*argv), "--bootstrap", 50, *flags)

    by_scores = ("--fuse-by", "scores")
    assert "--fuse-by scores: needs --fuse" in error("--run", model, *by_scores)
    assert "at most 4 runs" in error("--run", model, "--fuse", *[rules] * 4, *by_scores)
    config = NeighborsConfig(tiny.path, tmp_path / "far", methods=("sr",), validation_fraction=0.3)
    neighbors(config, Console(file=io.StringIO()))
    assert "not those of" in error("--run", model, "--fuse", tmp_path / "far/sr", *by_scores)
    config = (model / "config.yaml").read_text()
    (model / "config.yaml").write_text(config.replace("protocol: default", "protocol: paper"))
    assert "none are left to choose" in error("--run", rules, "--fuse", model, *by_scores)
    (model / "config.yaml").unlink()
    assert "none are left to choose" in error("--run", model, "--fuse", rules, *by_scores)


def test_command_writes_a_run_that_compares(tiny: SessionDataset, model: Path, rules: Path, tmp_path, capsys):
    out = tmp_path / "fusion"
    call("--run", model, "--fuse", rules, "--out", out, "--bootstrap", 50)
    printed = " ".join(capsys.readouterr().out.split())
    assert "rrf(model, sr)" in printed
    assert "fusion − model" in printed
    assert "fusion − sr" in printed
    results, ranks = read_results(out), read_ranks(out, len(tiny.test))
    assert results["model"] == "rrf(gcegnn, sr)"
    assert results["protocol"] == "default"
    assert results["test"] == summarise(ranks)
    assert results["fused"] == [str(model), str(rules)]
    np.testing.assert_array_equal(
        ranks, fused_test_ranks(((rules, tiny), (model, tiny))), err_msg="the order says nothing"
    )
    own = summarise(read_ranks(model, len(tiny.test)))["raw"]["hr@5"]
    assert results["differences"][str(model)]["raw"]["hr@5"][0] == pytest.approx(results["test"]["raw"]["hr@5"] - own)
    before = (out / "ranks.npy").read_bytes()
    call("--run", out, "--compare", model, "--bootstrap", 50)
    again = read_results(out)["differences"][str(model)]["raw"]["hr@5"]
    assert again == pytest.approx(results["differences"][str(model)]["raw"]["hr@5"])
    call("--run", model, "--fuse", rules, "--out", out, "--bootstrap", 50, "--overwrite")
    assert (out / "ranks.npy").read_bytes() == before


def test_other_training_rows_leave_the_test_set_the_same(tiny: SessionDataset, model: Path, tmp_path):
    """Rules of a data set that trains on last clicks, fused and compared with a model that trains on prefixes."""
    other, rules = rules_of_last_clicks(tiny, tmp_path)
    assert other.hash != tiny.hash
    assert other.has_same_test(tiny)
    out = tmp_path / "fusion"
    call("--run", model, "--fuse", rules, "--out", out, "--bootstrap", 50)
    np.testing.assert_array_equal(read_ranks(out, len(tiny.test)), fused_test_ranks(((model, tiny), (rules, other))))
    call("--run", model, "--compare", rules, "--bootstrap", 50)
    write_tiny(tmp_path / "third", seed=5)
    neighbors(NeighborsConfig(tmp_path / "third", tmp_path / "far", methods=("sr",)), Console(file=io.StringIO()))
    with pytest.raises(SystemExit):
        call("--run", model, "--compare", tmp_path / "far/sr")


def test_a_run_chosen_on_test_marks_the_fusion(model: Path, rules: Path, tmp_path):
    results = json.loads((model / "results.json").read_text())
    (model / "results.json").write_text(json.dumps(results | {"protocol": "paper"}))
    call("--run", rules, "--fuse", model, "--out", tmp_path / "fusion", "--bootstrap", 50)
    assert read_results(tmp_path / "fusion")["protocol"] == "paper"


def test_bad_input_is_one_line(model: Path, rules: Path, tmp_path, refused):
    def error(*flags: object) -> str:
        return refused(lambda argv: call(*argv), *flags)

    flags = ("--run", model, "--bootstrap", 50)
    assert "needs --fuse" in error(*flags, "--out", tmp_path / "out")
    assert "--compare" in error(*flags, "--fuse", rules, "--compare", rules)
    assert "nowhere" in error(*flags, "--fuse", tmp_path / "nowhere")
    assert f"--fuse {rules}: is given twice" in error(*flags, "--fuse", rules, rules)
    assert f"--fuse {model}: is given twice" in error(*flags, "--fuse", rules, model)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert "--overwrite" in error(*flags, "--fuse", rules, "--out", tmp_path / "taken")
    for out in (model, rules, rules.parent, model / ".." / model.name):
        assert "would replace" in error(*flags, "--fuse", rules, "--out", out, "--overwrite")
    for name in ("results.json", "model.json"):
        (tmp_path / "taken" / name).touch()
    assert "holds a model" in error(*flags, "--fuse", rules, "--out", tmp_path / "taken", "--overwrite")
    assert (model / "model.json").is_file()
    call(*flags, "--fuse", rules, "--out", tmp_path / "fusion")
    by_scores = "--fuse", tmp_path / "fusion", "--fuse-by", "scores"
    assert "fusion: neither a model nor" in error(*flags, *by_scores)
    listless = tmp_path / "listless"
    shutil.copytree(rules, listless)
    (listless / "config.yaml").write_text("model: sr\n")
    assert "cannot be fused" in error(*flags, "--fuse", listless, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
