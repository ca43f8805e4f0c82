"""The run folder: what a trained or imported model leaves behind, and how to load it again.

model.json     schema version, model settings, the dataset's path, name and hash, the path of the intents, and the
               SHA-256 of what it was trained with and of each file of model/
model/         parameters and constants (orbax)
config.yaml    the settings of the command that made it
results.json, ranks.npy, metrics.jsonl, checkpoints/: see `results` and `train`
lock           held by the process that trains it
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml
from flax import nnx

from dmsrec_jax.artifacts import Intents, read_intents
from dmsrec_jax.backbones import reads
from dmsrec_jax.checkpoint import load_arrays, save_arrays
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import read_json, sha256, staged_file, write_json
from dmsrec_jax.intents import intent_rows
from dmsrec_jax.item_graph import NO_SESSIONS, ItemGraph, Members, read_sessions
from dmsrec_jax.model import ModelSettings, SessionModel
from dmsrec_jax.results import dataset_identity
from dmsrec_jax.scoring import Scorer
from dmsrec_jax.steps import ModelProgram, split_model

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Run:
    """A model with its parameters, and the dataset it belongs to."""

    path: Path
    settings: ModelSettings
    dataset: SessionDataset
    program: ModelProgram
    params: nnx.State
    intents: Path | None
    """The intents folder a fused model was trained with."""
    intents_hash: str | None
    """The SHA-256 of its meta.json; None where it is not known."""

    @property
    def model(self) -> SessionModel:
        """The model with its parameters."""
        return nnx.merge(self.program.graphdef, self.params, self.program.constants)

    @property
    def item_text(self) -> np.ndarray | None:
        """The encoded titles that the model holds, float16 [n_items + 1, d_title]; None where items are ids alone."""
        return np.asarray(self.model.item_text[...]) if self.settings.d_title else None

    def read_intents(self, folder: Path | None = None) -> Intents | None:
        """A fused model's intents; None for a plain one.

        Args:
          folder: where they are now; the recorded path if left out.

        Raises:
          InputError: they are missing, do not fit, or are others than the model was trained with.
        """
        if not self.settings.semantics:
            return None
        folder = folder or self.intents
        if folder is None:
            raise InputError(f"{self.path}: a fused model; --intents is due")
        intents = read_intents(folder, self.dataset)
        width = intents.embeddings.shape[1]
        if width != self.settings.d_text:
            raise InputError(f"{folder}: vectors of width {width}; {self.path} takes {self.settings.d_text}")
        if self.intents_hash not in (None, sha256(folder / "meta.json")):
            raise InputError(f"{folder}: not the intents {self.path} was trained with, by hash")
        return intents

    def scorer(self, part: str, intents: Intents | None) -> Scorer:
        """The sessions of a part of the dataset (train or test), ready to be scored; ``intents`` as read."""
        rows = None if intents is None else intent_rows(getattr(intents, part), intents.embeddings)
        return Scorer(self.program, getattr(self.dataset, part), self.settings.n_positions, rows)

    def score_test(self) -> np.ndarray:
        """Ranks of the test targets, int32 [n_test, 2]."""
        return self.scorer("test", self.read_intents()).ranks(self.params)


def intents_hash(description: Any) -> str | None:
    """The SHA-256 of the meta.json of a model's intents, from its model.json; None where it is not known."""
    inputs = description.get("inputs") if isinstance(description, dict) else None
    return inputs.get("intents") if isinstance(inputs, dict) else None


def new_model(
    settings: ModelSettings, item_graph: ItemGraph | Members | None, key: jax.Array, item_text: np.ndarray | None = None
) -> tuple[ModelProgram, nnx.State]:
    """A freshly initialised model, split into program and parameters."""
    return split_model(SessionModel(settings, item_graph, item_text, rngs=nnx.Rngs(params=key)))


def save_model(
    path: Path,
    settings: ModelSettings,
    dataset: SessionDataset,
    program: ModelProgram,
    params: nnx.State,
    intents: Path | None = None,
    inputs: Mapping[str, str | None] | None = None,
) -> None:
    """Writes ``model/`` and then ``model.json``, whose presence says that the model is whole.

    Args:
      path: the run folder.
      settings: the model's.
      dataset: it was trained on.
      program: its constants.
      params: its parameters.
      intents: the folder of a fused model's.
      inputs: hashes of what it was trained with, by flag.
    """
    save_arrays(path / "model", _arrays(program, params))
    recorded = None if intents is None else str(intents.absolute())
    description = {
        "schema_version": SCHEMA_VERSION,
        "settings": dataclasses.asdict(settings),
        "dataset": dataset_identity(dataset),
        "intents": recorded,
        "inputs": dict(inputs or {}),
        "files": {name: sha256(path / name) for name in _model_files(path)},
    }
    write_json(path / "model.json", description)


def load_run(path: Path, dataset: Path | None = None) -> Run:
    """Loads a run folder.

    Args:
      path: the run folder.
      dataset: where the run's dataset is now; the recorded path if left out.

    Raises:
      InputError: no model there, a damaged one, or a dataset that is not the one it was trained on.
    """
    if not (path / "model.json").is_file():
        raise InputError(f"{path}: no model.json: not a run folder with a trained or imported model")
    description = read_json(path / "model.json")
    _check_files(path, description)
    try:
        settings = ModelSettings(**description["settings"])
        recorded = description["dataset"]
        opened = SessionDataset.load(dataset or Path(recorded["path"]))
        if opened.hash != recorded["hash"]:
            raise InputError(f"{opened.path}: not the dataset {path} was trained on ({recorded['name']}, by hash)")
        intents = Path(description["intents"]) if description.get("intents") else None
        padding = 1 if settings.released_padding is None else settings.released_padding
        widths = (settings.d_text + 1, settings.d_title + 1)
        sizes = (
            settings.order,
            settings.inner,
            settings.d,
            settings.n_positions,
            settings.n_neighbors,
            padding,
            *widths,
        )
        if settings.n_items != opened.n_items or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError
        titles = np.zeros((settings.n_items + 1, settings.d_title), np.float16) if settings.d_title else None
        # Of the right sizes; what it says is loaded below.
        graph = read_sessions(
            reads(settings.backbone), NO_SESSIONS, settings.n_items, settings.n_neighbors, opened.sessions
        )
        program, params = new_model(settings, graph, jax.random.key(0), titles)
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path / 'model.json'}: not the description of a model") from None
    arrays = load_arrays(path / "model", _arrays(program, params))
    nnx.replace_by_pure_dict(params, arrays["params"])
    if "constants" in arrays:
        nnx.replace_by_pure_dict(program.constants, arrays["constants"])
    return Run(path, settings, opened, program, params, intents, intents_hash(description))


def write_config(path: Path, config: Any) -> None:
    """Writes a command's settings as ``config.yaml``; `train --config` reads it again."""
    values = {
        key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(config).items()
    }
    with staged_file(path / "config.yaml") as staged:
        staged.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def _model_files(path: Path) -> list[str]:
    return sorted(file.relative_to(path).as_posix() for file in (path / "model").rglob("*") if file.is_file())


def _check_files(path: Path, description: Any) -> None:
    files = description.get("files") if isinstance(description, dict) else None
    if not isinstance(files, dict) or description.get("schema_version") != SCHEMA_VERSION:
        raise InputError(f"{path / 'model.json'}: not of schema version {SCHEMA_VERSION}; train or import it again")
    for name in sorted({*files, *_model_files(path)}):
        if sha256(path / name) != files.get(name):
            raise InputError(f"{path / name}: its SHA-256 is not the one in model.json")


def _arrays(program: ModelProgram, params: nnx.State) -> dict[str, Any]:
    arrays = {"params": nnx.to_pure_dict(params), "constants": nnx.to_pure_dict(program.constants)}
    return arrays if arrays["constants"] else {"params": arrays["params"]}
