import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from dmsrec_jax.data import SessionDataset
from dmsrec_jax.data.write import Prepared, write_dataset
from dmsrec_jax.files import locked
from dmsrec_jax.history import best_epoch, best_of_each
from dmsrec_jax.metrics import METRICS, VIEWS, out_of_reach, summarise
from dmsrec_jax.runs import load_run
from dmsrec_jax.train import main
from tests.conftest import SMALL, write_tiny, write_tiny_titles


def call(*argv: object) -> None:
    main([str(word) for word in argv])


def read(path: Path):
    return json.loads(path.read_text())


def test_what_a_run_leaves_behind(tiny: SessionDataset, trained: Path):
    assert {path.name for path in trained.iterdir()} == {
        "checkpoints",
        "config.yaml",
        "lock",
        "metrics.jsonl",
        "model",
        "model.json",
        "ranks.npy",
        "results.json",
    }
    results, ranks = read(trained / "results.json"), np.load(trained / "ranks.npy")
    assert results["protocol"] == "default"
    assert results["model"] == "gcegnn"
    assert results["dataset"] == {"path": str(tiny.path.absolute()), "name": "tiny", "hash": tiny.hash}
    assert ranks.shape == (len(tiny.test), len(VIEWS))
    assert results["test"] == summarise(ranks)
    history = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in history] == [1, 2] == list(range(1, results["epochs"] + 1))
    assert results["validation"] == history[results["best_epoch"] - 1]["validation"]
    assert not any("test" in entry for entry in history), "the test set is scored once"


def test_the_saved_model_gives_the_saved_ranks(trained: Path):
    np.testing.assert_array_equal(load_run(trained).score_test(), np.load(trained / "ranks.npy"))


def test_seen_items_only_ever_move_a_target_up_or_out(tiny: SessionDataset, trained: Path):
    raw, excluded = np.load(trained / "ranks.npy").T
    seen = np.array([target in tiny.test[i] for i, target in enumerate(tiny.test.targets)])
    assert 0 < seen.mean() < 1
    assert (excluded[seen] == out_of_reach(tiny.n_items)).all()
    assert (excluded[~seen] <= raw[~seen]).all()


def test_a_finished_run_is_not_overwritten(tiny: SessionDataset, trained: Path, refused, capsys):
    flags = ("--backbone", "gcegnn", "--dataset", tiny.path, "--out", trained, *SMALL)
    before = (trained / "results.json").stat().st_mtime_ns
    assert "exists already; give --resume" in refused(main, *flags)
    call(*flags, "--resume")
    assert "finished already" in capsys.readouterr().out
    assert (trained / "results.json").stat().st_mtime_ns == before


def test_resume_refuses_other_settings(tiny: SessionDataset, trained: Path, refused):
    flags = ("--backbone", "gcegnn", "--dataset", tiny.path, "--out", trained, *SMALL, "--resume")
    assert "began with --lr 0.01, not 0.5" in refused(main, *flags, "--lr", 0.5)
    assert "began with --backbone gcegnn, not srgnn" in refused(main, *flags, "--backbone", "srgnn")


def test_overwrite_replaces_run_folders_only(tiny: SessionDataset, tmp_path, refused):
    flags = ("--backbone", "srgnn", "--dataset", tiny.path, *SMALL, "--overwrite", "--out")
    folder = tmp_path / "letters"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    assert "has no config.yaml" in refused(main, *flags, folder)
    assert (folder / "letter.txt").read_text() == "dear"
    assert "not a folder" in refused(main, *flags, folder / "letter.txt")
    assert "letter.txt" in refused(main, *flags, folder / "letter.txt" / "run")
    (folder / "config.yaml").write_text("backbone: srgnn\n")  # now it looks like one
    call(*flags, folder)
    assert not (folder / "letter.txt").exists()
    assert (folder / "results.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["letters"]


def test_config_of_a_run_repeats_it_and_flags_override_it(tiny: SessionDataset, trained: Path, tmp_path):
    again = tmp_path / "again"
    call("--config", trained / "config.yaml", "--out", again)
    assert read(again / "results.json")["test"] == read(trained / "results.json")["test"]
    np.testing.assert_array_equal(np.load(again / "ranks.npy"), np.load(trained / "ranks.npy"))
    other = tmp_path / "other"
    call("--config", trained / "config.yaml", "--out", other, "--seed", 5, "--epochs", 1)
    kept = yaml.safe_load((other / "config.yaml").read_text())
    assert (kept["seed"], kept["epochs"], kept["d"]) == (5, 1, 8)
    assert read(other / "results.json")["epochs"] == 1


def test_config_never_overwrites_by_itself(tiny: SessionDataset, trained: Path, tmp_path, refused):
    run = tmp_path / "run"
    call("--config", trained / "config.yaml", "--out", run, "--overwrite", "--epochs", 1)
    assert "exists already" in refused(main, "--config", run / "config.yaml")


def test_paper_protocol(tiny: SessionDataset, tmp_path, capsys):
    run = tmp_path / "run"
    flags = ("--backbone", "srgnn", "--dataset", tiny.path, "--out", run, *SMALL, "--epochs", 3, "--patience", 1)
    call(*flags, "--protocol", "paper", "--score", "cosine")
    results = read(run / "results.json")
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert results["protocol"] == "paper"
    assert results["validation"] is None
    assert len(history) == 3, "patience belongs to the default protocol"
    for view in VIEWS:
        for metric in METRICS:
            assert results["test"][view][metric] == max(entry["test"][view][metric] for entry in history)
    assert np.load(run / "ranks.npy").shape == (len(tiny.test), 2)
    assert "SELECTED ON THE TEST SET" in " ".join(capsys.readouterr().out.split())


def test_epochs_are_chosen_by_validation_mrr():
    history = [{"validation": {"raw": {"mrr@20": score}}} for score in (1.0, 3.0, 2.0, 3.0)]
    assert best_epoch(history) == 2
    tests = [{"test": {view: dict.fromkeys(METRICS, score) for view in VIEWS}} for score in (4.0, 5.0)]
    assert best_of_each(tests)["raw"]["hr@5"] == 5.0


def test_the_backbone_alone_trains_on_the_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call("--backbone", "srgnn", "--epochs", 1, "--d", 8)
    results = read(Path("runs/demo-srgnn-0/results.json"))
    assert results["dataset"]["name"] == "demo"
    assert results["test"]["raw"]["hr@20"] > 0
    assert SessionDataset.load("datasets/demo", verify=True).n_items == 300


def test_names_are_printed_as_they_are(tiny: SessionDataset, tmp_path, capsys):
    """Square brackets in a folder's name are no mark-up."""
    run = tmp_path / "[/bold]"
    call("--backbone", "srgnn", "--dataset", tiny.path, "--out", run, *SMALL)
    assert "[/bold]" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--batch-size", 0),
        ("--batch-size", -4),
        ("--epochs", 0),
        ("--patience", 0),
        ("--lr", "nan"),
        ("--lr", "inf"),
        ("--lr", -1),
        ("--lr-decay", -1),
        ("--lr-decay-every", 0),
        ("--lr-first-decay", -1),
        ("--l2", -1),
        ("--d", 0),
        ("--d", 2**40),
        ("--batch-size", 2**40),
        ("--device-data-mb", -1),
        ("--dropout-global", 1),
        ("--dropout-local", "nan"),
        ("--n-neighbors", 0),
        ("--validation-fraction", 0),
        ("--validation-fraction", 0.999),
        ("--validation-fraction", "nan"),
        ("--seed", -1),
        ("--seed", 2**40),
        ("--devices", 99),
        ("--d", "eight"),
        ("--backbone", "bert4rec"),
        ("--protocol", "honest"),
        ("--dataset", "nowhere"),
        ("--config", "nowhere.yaml"),
        ("--released-padding", 50),
        ("--colour", "red"),
    ],
)
def test_bad_flags_are_named(tiny: SessionDataset, tmp_path, refused, flag, value):
    error = refused(main, "--backbone", "gcegnn", "--dataset", tiny.path, "--out", tmp_path / "run", flag, value)
    assert flag in error or str(value) in error
    assert not list(tmp_path.iterdir()), "the right command must not find anything in its way"


@pytest.mark.parametrize(
    ("backbone", "flags"),
    [
        ("srgnn", ("--dropout-global", 0.9)),
        ("srgnn", ("--n-neighbors", 5)),
        ("gcegnn", ("--dropout-layers", 0.1)),
        ("gcegnn", ("--feature-dropout", 0.2)),
        ("share", ("--self-supervision", 0.1)),
        ("gcegnn", ("--order", 2)),
        ("srgnn", ("--align", "infonce")),
        ("srgnn", ("--align", "infonce", "--semantics", "released", "--intents", "there")),
        ("msgifsr", ("--alpha", 0.5, "--semantics", "released", "--intents", "there")),
        ("msgifsr", ("--ablation", "no-latent", "--semantics", "released", "--intents", "there")),
        ("msgifsr", ("--intent-dropout", 0.3, "--semantics", "released", "--intents", "there")),
        ("miasrec", ("--released-padding", 99, "--intents", "there")),
        ("dhcn", ("--semantics", "released", "--align-weight", 0.5, "--intents", "there")),
        ("srgnn", ("--resume", "--overwrite")),
    ],
)
def test_flags_that_would_do_nothing_are_refused(tiny: SessionDataset, tmp_path, refused, backbone, flags):
    base = ("--backbone", backbone, "--dataset", tiny.path, "--out", tmp_path / "run")
    assert flags[0] in refused(main, *base, *flags)
    assert not list(tmp_path.iterdir())


def test_a_run_is_not_replaced_for_what_cannot_be_made(tiny: SessionDataset, tmp_path, refused):
    run = tmp_path / "run"
    call("--backbone", "srgnn", "--dataset", tiny.path, "--out", run, *SMALL, "--epochs", 1)
    flags = ("--config", run / "config.yaml", "--out", run, "--overwrite")
    assert "--devices 9" in refused(main, *flags, "--devices", 9)
    with locked(run):
        assert "another process is at work" in refused(main, *flags)
    assert (run / "results.json").is_file()


def test_what_is_to_be_read_is_not_replaced(tiny: SessionDataset, tmp_path, refused):
    run = tmp_path / "run"
    call("--backbone", "srgnn", "--dataset", tiny.path, "--out", run, *SMALL, "--epochs", 1)
    titles = write_tiny_titles(run / "titles", tiny)
    flags = ("--backbone", "srgnn", "--dataset", tiny.path, "--item-text", titles, "--out", run, "--overwrite")
    assert f"would replace {titles}" in refused(main, *flags)
    assert titles.is_dir()


def test_a_diverging_loss_says_so(tiny: SessionDataset, tmp_path, refused):
    flags = ("--backbone", "srgnn", "--dataset", tiny.path, "--out", tmp_path / "run", *SMALL, "--lr", 1e30)
    assert re.search("the loss is (nan|inf); try a smaller --lr", refused(main, *flags))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def objects(path: Path) -> None:
    np.save(path, np.array([{}, "x"], object), allow_pickle=True)


def foreign(path: Path) -> None:
    path.write_text("hello")


def out_of_range(path: Path) -> None:
    array = np.load(path)
    array[3] = 10_000
    np.save(path, array)


def other_dtype(path: Path) -> None:
    np.save(path, np.load(path).astype(np.float64))


def not_ours(path: Path) -> None:
    path.write_text('{"format": "something else"}')


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("meta.json", Path.unlink),
        ("meta.json", foreign),
        ("meta.json", not_ours),
        ("train_items.npy", cut),
        ("train_items.npy", objects),
        ("train_items.npy", foreign),
        ("train_items.npy", out_of_range),
        ("train_offsets.npy", other_dtype),
        ("train_offsets.npy", out_of_range),
        ("test_targets.npy", out_of_range),
        ("test_chains.npy", Path.unlink),
        ("sessions_items.npy", cut),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_damaged_datasets_are_named(broken: SessionDataset, tmp_path, refused, name, damage):
    damage(broken.path / name)
    error = refused(main, "--backbone", "srgnn", "--dataset", broken.path, "--out", tmp_path / "run")
    assert str(broken.path) in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("backbone: srgnn\ncolour: red\n", "unknown key 'colour'"),
        ("- srgnn\n", "a mapping of settings is due"),
        ("d: eight\n", "d: 'eight'"),
        ("{", "not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("d: null\n", "d: None"),
    ],
)
def test_bad_config_files_are_named(tiny: SessionDataset, tmp_path, refused, text, complaint):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    error = refused(main, "--backbone", "srgnn", "--dataset", tiny.path, "--config", path)
    assert str(path) in error
    assert complaint in error


def test_resume_on_another_dataset_is_refused(tiny: SessionDataset, tmp_path, refused):
    run, other = tmp_path / "run", write_tiny(tmp_path / "other", seed=9)
    flags = ("--backbone", "srgnn", "--out", run, *SMALL)
    call(*flags, "--dataset", tiny.path)
    (run / "results.json").unlink()
    error = refused(main, *flags, "--dataset", other.path, "--resume", "--d", 8)
    assert "--d" in error
    larger = write_dataset(
        Prepared(other.train, other.test, other.sessions, [*other.item_ids[1:], "more"]),
        tmp_path / "larger",
        name="larger",
        provenance={},
    )
    settings = (run / "config.yaml").read_text()
    for data in (other, larger):  # with its number of items a checkpoint's shapes change
        error = refused(main, *flags, "--dataset", data.path, "--resume")
        assert f"began on another --dataset than {data.path}" in error
        assert (run / "config.yaml").read_text() == settings
    (run / "config.yaml").write_text("[")
    assert "config.yaml" in refused(main, *flags, "--dataset", tiny.path, "--resume")
