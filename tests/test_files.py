"""Staged folders: whole or absent, and never in place of something else."""

import subprocess
import sys
from pathlib import Path

import pytest

from dmsrec_jax.errors import InputError
from dmsrec_jax.files import staged_folder


def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path: Path):
    out = tmp_path / "out"

    def write_half(staged: Path) -> None:
        (staged / "a").write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError), staged_folder(out, marker="a") as staged:
        write_half(staged)
    assert list(tmp_path.iterdir()) == []
    with staged_folder(out, marker="a") as staged:
        (staged / "a").write_text("whole")
    with pytest.raises(RuntimeError), staged_folder(out, marker="a", overwrite=True) as staged:
        write_half(staged)
    assert (out / "a").read_text() == "whole"
    assert list(tmp_path.iterdir()) == [out]


def test_overwrite_replaces_folders_of_its_kind_only(tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"--overwrite .* has no a"), staged_folder(out, marker="a", overwrite=True):
        pass
    assert (out / "thesis.txt").exists()
    (out / "a").touch()
    with staged_folder(out, marker="a", overwrite=True) as staged:
        (staged / "b").touch()
    assert [path.name for path in out.iterdir()] == ["b"]


def test_the_working_directory_is_not_replaced(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in (Path(), tmp_path):
        with pytest.raises(InputError, match="is the working directory"), staged_folder(out, marker="a"):
            pass
    with pytest.raises(InputError, match="is a mount point"), staged_folder(Path("/dev"), marker="a", overwrite=True):
        pass


def test_what_came_meanwhile_is_not_replaced(tmp_path: Path):
    out = tmp_path / "out"

    def write_both(staged: Path) -> None:
        out.mkdir()
        for folder in (staged, out):
            (folder / "a").write_text(folder.name)

    with pytest.raises(InputError, match=r"out: exists already"), staged_folder(out, marker="a") as staged:
        write_both(staged)
    assert (out / "a").read_text() == "out"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "a whole folder"])
def test_a_link_stays_and_what_it_points_at_is_replaced(tmp_path: Path, there):
    disk, link = tmp_path / "disk", tmp_path / "link"
    disk.mkdir()
    link.symlink_to(disk / "out")
    if there != "nothing":
        (disk / "out").mkdir()
    if there == "a whole folder":
        (disk / "out/a").touch()
    with staged_folder(link, marker="a", overwrite=True) as staged:
        (staged / "b").touch()
    assert link.is_symlink()
    assert [path.name for path in link.iterdir()] == ["b"]
    assert list(disk.iterdir()) == [disk / "out"]
    assert set(tmp_path.iterdir()) == {disk, link}


WRITE = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
from dmsrec_jax import cli
from dmsrec_jax.files import staged_file, staged_files, staged_folder

@dataclass
class Config:
    out: Path

def write(config):
    config.out.mkdir(exist_ok=True)
    with (
        staged_folder(config.out / "folder", marker="a", overwrite=True) as folder,
        staged_file(config.out / "file") as file,
        staged_files(config.out, last="b") as files,
    ):
        for path in (folder / "a", file, files / "b"):
            path.write_text("half")
        print("half", flush=True)
        sys.stdin.read()

cli.run(write, Config, prog="write")
"""


@pytest.fixture
def writer(tmp_path: Path):
    """Starts a process that has three things half-written, until its input ends."""
    begun = []

    def start() -> subprocess.Popen:
        words = [sys.executable, "-c", WRITE, "--out", str(tmp_path)]
        begun.append(subprocess.Popen(words, text=True, stdin=-1, stdout=-1, stderr=-1))
        assert begun[-1].stdout.readline() == "half\n"
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_sigterm_cleans_up(tmp_path: Path, writer):
    process = writer()
    assert len(hidden(tmp_path)) == 3
    process.terminate()
    assert process.communicate() == ("", "write: terminated\n")
    assert process.returncode == 143
    assert list(tmp_path.iterdir()) == []


def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path, writer):
    living, killed = writer(), writer()
    own = [name for name in hidden(tmp_path) if f".{living.pid}." in name]
    elsewhere = tmp_path / f".folder.other-host.{killed.pid}.abcdefgh"
    elsewhere.mkdir()
    (tmp_path / f"{own[0]}.txt").touch()
    killed.kill()
    killed.wait()
    assert len(hidden(tmp_path)) == 8
    following = writer()
    kept = [name for name in hidden(tmp_path) if f".{following.pid}." not in name]
    assert kept == sorted([*own, elsewhere.name, f"{own[0]}.txt"])
    following.communicate("")
    assert following.returncode == 0
    assert hidden(tmp_path) == kept
    assert [(tmp_path / name).read_text() for name in ("folder/a", "file", "b")] == ["half"] * 3
