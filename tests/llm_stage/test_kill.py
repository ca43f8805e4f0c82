import json
import subprocess
import sys
from pathlib import Path

import pytest

from dmsrec_jax.artifacts import read_intents
from dmsrec_jax.errors import InputError
from llm_stage import store
from llm_stage.run import main
from tests.llm_stage.conftest import contents

KILLS = 20
ROOT = Path(__file__).parents[2]


def test_killed_runs_end_as_the_uninterrupted_one(tiny, candidates, tmp_path):
    """SIGKILL at 20 random moments: the same bytes in the end, and each kill cost one batch at most."""
    words = [sys.executable, "-m", "tests.llm_stage.kill", tiny.path, candidates, tmp_path, KILLS]
    done = subprocess.run([str(word) for word in words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(entry["killed"] for entry in rounds) == KILLS
    whole = contents(tmp_path / "whole")
    n = sum(map(int, (tmp_path / "whole.asked").read_text().split()))
    for entry in rounds:
        assert contents(tmp_path / entry["name"]) == whole
        asked = sum(map(int, (tmp_path / f"{entry['name']}.asked").read_text().split()))
        assert asked <= n + 8 * entry["killed"]


class Killed(BaseException):
    """What stands in for SIGKILL: no handler of the code under test catches it."""


def test_death_at_any_write_can_be_gone_on_from(tiny, candidates, faked, monkeypatch, tmp_path):
    """Dies at the n-th file or folder made durable, for every eleventh n; what was written, but not synced, is lost."""
    argv = ["--dataset", tiny.path, "--candidates", candidates, "--engine", "retrieval", "--batch-size", 32]
    main([str(word) for word in (*argv, "--out", tmp_path / "whole")])
    sync, made = store.os.fsync, []

    def counted(handle):
        made.append(handle)
        if len(made) == dies_at:
            raise Killed
        sync(handle)

    monkeypatch.setattr(store.os, "fsync", counted)
    dies_at, died = 1, True
    while died:
        made.clear()
        out = tmp_path / f"dies-{dies_at}"
        try:
            main([str(word) for word in (*argv, "--out", out)])
            died = False
        except Killed:
            if (out / "meta.json").exists():
                read_intents(out, tiny)  # whole, or it would raise
            made.extend(range(dies_at))  # counts on without dying again
            main([str(word) for word in (*argv, "--out", out)])
        assert contents(out) == contents(tmp_path / "whole")
        dies_at += 11 if dies_at > 3 else 1
    assert dies_at > 40


def test_a_full_disk_while_writing_the_intents(tiny, candidates, faked, refused, monkeypatch, tmp_path):
    argv = ("--dataset", tiny.path, "--candidates", candidates, "--engine", "retrieval", "--out", tmp_path / "out")

    def full(file, array, **_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("dmsrec_jax.files.np.save", full)
        line = refused(main, *argv)
    assert "No space left on device (193 of 193 answered and safe" in line
    assert not (tmp_path / "out/meta.json").exists()
    with pytest.raises(InputError):
        read_intents(tmp_path / "out", tiny)
    main([str(word) for word in argv])
    read_intents(tmp_path / "out", tiny)
