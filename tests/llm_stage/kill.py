"""Runs the command in forked children and kills them; a process of its own, since only a small one forks safely.

python -m tests.llm_stage.kill DATASET CANDIDATES FOLDER KILLS: prints one JSON line per finished folder.
"""

import contextlib
import io
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401

from llm_stage.config import RunConfig
from llm_stage.run import run
from tests.llm_stage import fakes


def start(config: RunConfig, asked: Path) -> int:
    """A child that runs ``config`` and notes how many sessions each batch asks for."""
    if child := os.fork():
        return child
    status = 1
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            fakes.install()

            def note(questions):
                with asked.open("a") as file:
                    file.write(f"{len(questions.candidates)}\n")

            fakes.FakeEngine.hook = staticmethod(note)
            run(config)
        status = 0
    finally:
        os._exit(status)


def main(dataset: Path, candidates: Path, folder: Path, kills: int) -> None:
    rng = random.Random(0)

    def config(name: str) -> RunConfig:
        return RunConfig(dataset=dataset, candidates=candidates, engine="retrieval", out=folder / name, batch_size=8)

    began = time.monotonic()
    assert os.waitpid(start(config("whole"), folder / "whole.asked"), 0)[1] == 0
    seconds = time.monotonic() - began
    folders = killed = 0
    while killed < kills:
        folders += 1
        name, before = f"killed-{folders}", killed
        while True:
            child = start(config(name), folder / f"{name}.asked")
            if killed < kills:
                time.sleep(rng.uniform(0, seconds / 2))
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            if not os.WIFSIGNALED(status):
                break
            killed += 1
        assert status == 0
        print(json.dumps({"name": name, "killed": killed - before}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), int(sys.argv[4]))
