import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dmsrec_jax.cli import run
from dmsrec_jax.config import EvaluateConfig, NeighborsConfig
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.data.samples import last_clicks
from dmsrec_jax.data.write import Prepared, write_dataset
from dmsrec_jax.ensemble import K, fuse, fused_ranks, fused_test_ranks, open_scores
from dmsrec_jax.evaluate import evaluate
from dmsrec_jax.metrics import rank_targets, summarise
from dmsrec_jax.neighbors import neighbors
from dmsrec_jax.results import read_ranks, read_results
from tests.conftest import write_tiny


def call(*argv: object) -> None:
    run(evaluate, EvaluateConfig, [str(word) for word in argv], prog="evaluate")


@pytest.fixture(scope="module")
def rules(tiny: SessionDataset, tmp_path_factory) -> Path:
    """Sequential rules on `tiny`."""
    out = tmp_path_factory.mktemp("ensemble") / "neighbors"
    neighbors(NeighborsConfig(tiny.path, out, methods=("sr",)), Console(file=io.StringIO()))
    return out / "sr"


@pytest.fixture
def model(trained: Path, tmp_path) -> Path:
    """A copy of the trained run, for `evaluate` writes into it."""
    return shutil.copytree(trained, tmp_path / "model")


def test_ties_share_their_worst_rank():
    fused = fuse([np.array([[9.0, 3.0, 1.0, 3.0, 0.0]]), np.array([[0.0, 1.0, 2.0, 3.0, 4.0]])])
    places = np.array([[2, 4], [3, 3], [2, 2], [4, 1]])
    np.testing.assert_allclose(fused, [[0, *(1 / (K + places)).sum(1)]])


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
    assert open_scores(rules, tiny)(batch).shape == (len(batch), tiny.n_items + 1)


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
    names = tiny.item_ids[1:], tiny.titles[1:]
    prepared = Prepared(last_clicks(tiny.sessions), tiny.test, tiny.sessions, *names)
    other = write_dataset(prepared, tmp_path / "last", name="last", provenance={})
    assert other.hash != tiny.hash
    assert other.has_same_test(tiny)
    neighbors(NeighborsConfig(other.path, tmp_path / "rules", methods=("sr",)), Console(file=io.StringIO()))
    rules, out = tmp_path / "rules/sr", tmp_path / "fusion"
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
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert "--overwrite" in error(*flags, "--fuse", rules, "--out", tmp_path / "taken")
    listless = tmp_path / "listless"
    shutil.copytree(rules, listless)
    (listless / "config.yaml").write_text("model: sr\n")
    assert "cannot be fused" in error(*flags, "--fuse", listless, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
