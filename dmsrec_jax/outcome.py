"""What a run keeps of its settings and epochs, and leaves in its folder at the end, whichever command trained it."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dmsrec_jax import cli
from dmsrec_jax.config import TrainConfig
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.history import History, best_epoch, best_of_each
from dmsrec_jax.metrics import summarise
from dmsrec_jax.recipe import HOW_IT_RUNS, Inputs, hyper, model_settings, provenance
from dmsrec_jax.results import dataset_identity, write_ranks, write_results
from dmsrec_jax.runs import save_model
from dmsrec_jax.steps import ModelProgram, learning_rate

FREE = HOW_IT_RUNS | {"dataset", "intents", "item_text"}
"""Settings in which a run that goes on may differ from how it began; what the folders hold is compared by hash."""


class Trained(NamedTuple):
    """A model at its best epoch, and how it came there."""

    program: ModelProgram
    params: nnx.State
    history: History
    ranks: np.ndarray
    """Of the test targets, int32 [n_test, 2]."""
    ranks_no_intent: np.ndarray | None
    """The same without intents; None of a plain model."""
    compile_seconds: float


def kept_settings(config: TrainConfig, dataset: SessionDataset, run: Path) -> TrainConfig:
    """The settings as ``config.yaml`` keeps them: what comes back through --config neither resumes nor overwrites."""
    return dataclasses.replace(
        config,
        dataset=dataset.path.absolute(),
        intents=config.intents and config.intents.absolute(),
        item_text=config.item_text and config.item_text.absolute(),
        out=run,
        config=None,
        resume=False,
        overwrite=False,
    )


def check_same_settings(run: Path, config: TrainConfig, flag: str = "") -> None:
    """Refuses to go on with other settings than the run began with; ``flag`` leads the message."""
    begun = cli.read_yaml(run / "config.yaml")
    for field in dataclasses.fields(config):
        if field.name not in FREE and begun.get(field.name) != getattr(config, field.name):
            raise InputError(
                f"{flag}{run}: began with {cli.flag_of(field.name)} {begun.get(field.name)}, "
                f"not {getattr(config, field.name)}"
            )


def epoch_entry(
    config: TrainConfig, epoch: int, loss: float, metrics: dict[str, Any], sessions: int, seconds: float
) -> dict[str, Any]:
    """An entry of the history; ``epoch`` counts from 0."""
    return {
        "epoch": epoch + 1,
        "loss": loss,
        "lr": float(learning_rate(hyper(config), jnp.asarray(epoch))),
        "test" if config.protocol == "paper" else "validation": metrics,
        "sessions_per_s": sessions / seconds,
        "seconds": seconds,
    }


def write_outcome(run: Path, config: TrainConfig, inputs: Inputs, trained: Trained) -> dict[str, Any]:
    """Writes model, ranks and, last, ``results.json`` into a run folder; returns the results."""
    dataset, history = inputs.dataset, trained.history
    settings = model_settings(config, inputs)
    save_model(run, settings, dataset, trained.program, trained.params, config.intents, inputs.hashes)
    validated = config.protocol == "default"
    results = {
        "test": summarise(trained.ranks) if validated else best_of_each(history),
        "protocol": config.protocol,
        "model": config.backbone,
        "dataset": dataset_identity(dataset),
        "intents": provenance(config.intents),
        "item_text": provenance(config.item_text),
        "seed": config.seed,
        "epochs": len(history),
        "best_epoch": best_epoch(history),
        "validation": history[best_epoch(history) - 1]["validation"] if validated else None,
        "train_seconds": sum(entry["seconds"] for entry in history),
        "compile_seconds": trained.compile_seconds,
    }
    if trained.ranks_no_intent is not None:
        results["test_no_intent"] = summarise(trained.ranks_no_intent)
    write_ranks(run, trained.ranks)
    write_results(run, results)
    return results
