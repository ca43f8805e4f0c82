"""What several tests share: a tiny data set whose sessions repeat items, and the way to the shared reference data."""

import os
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from dmsrec_jax.artifacts import IntentLists, Intents, SessionIntents, write_intents, write_item_text
from dmsrec_jax.data import SessionDataset, Sessions
from dmsrec_jax.data.samples import prefixes
from dmsrec_jax.data.write import Prepared, write_dataset

SHARED = Path(os.environ.get("DMSREC_SHARED", Path(__file__).parents[1] / "../shared"))
N_ITEMS = 30
SMALL = ("--d", 8, "--batch-size", 16, "--epochs", 2, "--lr", 0.01)
"""Flags of a training run that takes no time."""


def shared(*parts: str) -> Path:
    """A file of the reference data; skips the test where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is absent; DMSREC_SHARED names the folder of reference data")
    return path


def random_sessions(seed: int, n: int, n_items: int = N_ITEMS, longest: int = 9) -> Sessions:
    """Sessions of 1 to ``longest`` clicks that often come back to an item, or stay on it."""
    rng = np.random.default_rng(seed)
    offsets = np.append(0, np.cumsum(rng.integers(1, longest + 1, n)))
    window = rng.integers(1, n_items - 3, n)[np.repeat(np.arange(n), np.diff(offsets))]
    return Sessions((window + rng.integers(0, 4, offsets[-1])).astype(np.int32), offsets)


def write_tiny(path: Path, seed: int = 0) -> SessionDataset:
    """A data set of 30 items and about 160 rows with repeated items, repeated titles and an item without one."""
    train, test = random_sessions(seed, 45), random_sessions(seed + 1, 15)
    titles = [f"Film {i}" for i in range(1, N_ITEMS - 2)] + ["Twin", "twin", ""]
    ids = [f"raw-{i}" for i in range(1, N_ITEMS + 1)]
    prepared = Prepared(prefixes(train), prefixes(test), train, ids, titles)
    return write_dataset(prepared, path, name="tiny", provenance={"source": "test"})


def random_intents(rng: np.random.Generator, n_sessions: int, n_intents: int) -> SessionIntents:
    """0 to 2 explicit and 0 to 3 latent intents a session, so that some have none at all."""

    def lists(most: int) -> IntentLists:
        offsets = np.append(0, np.cumsum(rng.integers(0, most + 1, n_sessions))).astype(np.int32)
        return IntentLists(offsets, rng.integers(0, n_intents, offsets[-1], dtype=np.int32))

    return SessionIntents(lists(2), lists(3), rng.integers(1, N_ITEMS + 1, (n_sessions, 4), dtype=np.int32))


def write_tiny_intents(path: Path, dataset: SessionDataset, seed: int = 0, d_text: int = 12) -> Path:
    """Intents of a data set: 20 distinct ones, with random vectors."""
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(20, d_text)).astype(np.float16)
    parts = {name: random_intents(rng, len(getattr(dataset, name)), 20) for name in ("train", "test")}
    intents = Intents(np.array([f"Intent {i}" for i in range(20)]), embeddings, **parts)
    write_intents(path, intents, dataset, {"engine": "test"})
    return path


def write_tiny_titles(path: Path, dataset: SessionDataset) -> Path:
    """Encoded titles of a data set: alike for the twins, none for the last item."""
    vectors = np.random.default_rng(5).normal(size=(N_ITEMS + 1, 6)).astype(np.float32)
    vectors[-2] = vectors[-3]
    vectors[[0, -1]] = 0
    write_item_text(path, vectors, dataset, {"encoder": "test"})
    return path


def pytest_configure(config: pytest.Config) -> None:
    """Tests run on the CPU and keep compiled programs, for each other and for the next time."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Most of the time goes into compiling programs that run once: a third less without LLVM's optimisations and MLIR.
    cheap = ["backend_optimization_level=0", "llvm_disable_expensive_passes=true"]
    if version("jax").startswith("0.10."):  # later ones end at a flag that they no longer know
        cheap.append("cpu_use_fusion_emitters=false")
    os.environ.setdefault("XLA_FLAGS", " ".join(f"--xla_{flag}" for flag in cheap))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("jax")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> SessionDataset:
    return write_tiny(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="session")
def tiny_intents(tiny: SessionDataset, tmp_path_factory) -> Path:
    return write_tiny_intents(tmp_path_factory.mktemp("data") / "intents", tiny)


@pytest.fixture(scope="session")
def tiny_titles(tiny: SessionDataset, tmp_path_factory) -> Path:
    return write_tiny_titles(tmp_path_factory.mktemp("data") / "titles", tiny)


@pytest.fixture
def broken(tmp_path) -> SessionDataset:
    """A copy of `tiny` that a test may damage."""
    return write_tiny(tmp_path / "broken")


@pytest.fixture
def refused(capsys):
    """Calls a command that must exit with code 2 and exactly one line on stderr; returns the line."""

    def call(main, *argv: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in argv])
        out, err = capsys.readouterr()
        assert stop.value.code == 2
        assert err.endswith("\n")
        assert err.count("\n") == 1, err
        assert "Traceback" not in out
        return err

    return call


@pytest.fixture(scope="session")
def trained(tiny: SessionDataset, tmp_path_factory) -> Path:
    """The run folder of a GCE-GNN trained on `tiny`."""
    from dmsrec_jax.train import main

    run = tmp_path_factory.mktemp("runs") / "trained"
    main([str(word) for word in ("--backbone", "gcegnn", "--dataset", tiny.path, "--out", run, *SMALL)])
    return run


def four_devices() -> dict[str, str]:
    """The environment of a child process whose jax sees four devices."""
    return os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"}


def command(name: str, *argv: object) -> list[str]:
    """``python -m dmsrec_jax.NAME`` with these arguments."""
    return [sys.executable, "-m", f"dmsrec_jax.{name}", *map(str, argv)]
