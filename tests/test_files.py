"""Staged folders: whole or absent, and never in place of something else."""

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
