from pathlib import Path

import numpy as np
import pytest

from dmsrec_jax.artifacts import write_candidates
from dmsrec_jax.data import SessionDataset
from tests.conftest import N_ITEMS
from tests.llm_stage import fakes


def write_random_candidates(folder: Path, dataset: SessionDataset, seed: int = 0) -> Path:
    """Six candidates a session; the same for equal sessions, as a model's would be."""

    def of(session: np.ndarray) -> np.ndarray:
        return np.random.default_rng([seed, *session.tolist()]).permutation(N_ITEMS)[:6] + 1

    parts = {"train": dataset.train, "test": dataset.test}
    listed = {part: np.stack([of(rows[row]) for row in range(len(rows))]) for part, rows in parts.items()}
    write_candidates(folder, listed, dataset, {"run": "test"})
    return folder


@pytest.fixture(scope="session")
def candidates(tiny: SessionDataset, tmp_path_factory) -> Path:
    """A candidates folder for `tiny`."""
    return write_random_candidates(tmp_path_factory.mktemp("llm") / "candidates", tiny)


@pytest.fixture
def faked(monkeypatch) -> type[fakes.FakeEngine]:
    """``--engine retrieval`` is a fake engine with a fake encoder."""
    fakes.install(monkeypatch.setattr)
    monkeypatch.setattr(fakes.FakeEngine, "hook", fakes.FakeEngine.hook)  # undoes what a test hooks in
    return fakes.FakeEngine


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the report, which tells times, and the lock."""
    left_out = {"report.json", "lock"}
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in left_out)
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
