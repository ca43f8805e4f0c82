"""Run folders that are none, or no longer whole: one line for every command that reads them."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from dmsrec_jax import candidates, recommend
from tests.conftest import command

COMMANDS = {
    "candidates": (candidates.main, ("--k", 5, "--out", "out")),
    "recommend": (recommend.main, ("--session", "Film 1")),
}


@pytest.fixture(params=COMMANDS)
def complaint(request, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main, flags = COMMANDS[request.param]
    return lambda run: refused(main, "--run", run, *flags)


@pytest.fixture
def run(trained: Path, tmp_path) -> Path:
    """A copy to damage."""
    return shutil.copytree(trained, tmp_path / "run")


def test_no_run_folder(complaint, tmp_path):
    assert "no model.json" in complaint(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    assert "no model.json" in complaint(tmp_path / "file")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"settings": {}, "dataset": {}}',
        '{"settings": {"backbone": "srgnn"}, "dataset": {"path": 7}}',
        '{"settings": 3}',
    ],
)
def test_foreign_descriptions(complaint, run, text):
    (run / "model.json").write_text(text)
    assert "model.json" in complaint(run)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("backbone", "bert4rec"), ("d", 0), ("d", "8"), ("d", 9), ("n_items", -3), ("n_positions", 2)],
)
def test_other_settings_than_the_parameters(complaint, run, setting, value):
    description = json.loads((run / "model.json").read_text())
    description["settings"][setting] = value
    (run / "model.json").write_text(json.dumps(description))
    assert str(run) in complaint(run)


def test_missing_parameters(complaint, run):
    shutil.rmtree(run / "model")
    assert str(run / "model") in complaint(run)


def test_cut_parameters(complaint, run):
    for path in run.joinpath("model").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-20])
    assert str(run / "model") in complaint(run)


def test_cut_parameters_end_a_real_process_with_one_line(run, tmp_path):
    """What orbax's threads have to say after the first error stays unsaid."""
    for path in run.joinpath("model", "d").iterdir():
        path.write_bytes(path.read_bytes()[:-20])
    words = command("recommend", "--run", run, "--session", "Film 1")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(run / "model") in done.stderr


def test_missing_dataset(complaint, run):
    description = json.loads((run / "model.json").read_text())
    description["dataset"]["path"] = str(run / "moved-away")
    (run / "model.json").write_text(json.dumps(description))
    assert "moved-away" in complaint(run)


def test_a_flipped_bit_in_any_file_of_the_model_is_named(complaint, run):
    files = [path for path in run.joinpath("model").rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in files:
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        assert f"{path}: its SHA-256 is not the one in model.json" in complaint(run)
        path.write_bytes(content)


def test_a_run_folder_without_hashes_is_refused(complaint, run):
    description = json.loads((run / "model.json").read_text())
    del description["files"], description["schema_version"]
    (run / "model.json").write_text(json.dumps(description))
    assert "model.json: not of schema version 1" in complaint(run)
