"""What a training run remembers of its epochs: ``metrics.jsonl``, the best epoch, when to stop."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from dmsrec_jax.errors import InputError
from dmsrec_jax.files import staged_file
from dmsrec_jax.metrics import METRICS, VIEWS

History = list[dict[str, Any]]
"""An entry per epoch: epoch (from 1), loss, lr, the metrics under "validation" or "test", sessions_per_s, seconds."""
SELECT_BY = "mrr@20"
"""Validation metric (raw) that chooses the epoch."""


def best_epoch(history: History) -> int:
    """The epoch (from 1) with the best selection metric, the earliest of equals."""
    scores = [entry["validation" if "validation" in entry else "test"]["raw"][SELECT_BY] for entry in history]
    return int(np.argmax(scores)) + 1


def best_of_each(history: History) -> dict[str, dict[str, float]]:
    """The released code's report: each metric's best epoch ON THE TEST SET."""
    return {view: {m: max(entry["test"][view][m] for entry in history) for m in METRICS} for view in VIEWS}


def is_stale(history: History, patience: int) -> bool:
    """Whether validation has not improved for ``patience`` epochs; without validation never."""
    return bool(history) and "validation" in history[-1] and len(history) - best_epoch(history) >= patience


def epoch_line(entry: dict[str, Any], epochs: int) -> str:
    """One epoch in words."""
    name = "validation" if "validation" in entry else "test"
    raw = entry[name]["raw"]
    return (
        f"epoch {entry['epoch']:>2}/{epochs}  loss {entry['loss']:.4f}  {name} HR@20 {raw['hr@20']:.2f} "
        f"MRR@20 {raw['mrr@20']:.2f}  {entry['sessions_per_s']:,.0f} sessions/s  {entry['seconds']:.1f} s"
    )


def write_metrics(run: Path, history: History) -> None:
    """Writes ``metrics.jsonl``, a line per epoch."""
    with staged_file(run / "metrics.jsonl") as staged:
        staged.write_text("".join(json.dumps(entry) + "\n" for entry in history), encoding="utf-8")


def summary_writer() -> type:
    """TensorBoard's writer.

    Raises:
      InputError: its package is missing.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard: needs the extra: pip install 'dmsrec[tensorboard]'") from None
    return SummaryWriter


def write_tensorboard(run: Path, history: History) -> None:
    """Writes the curves for TensorBoard."""
    with summary_writer()(str(run / "tensorboard")) as writer:
        for entry in history:
            writer.add_scalar("loss", entry["loss"], entry["epoch"])
            for name in {"validation", "test"} & entry.keys():
                for metric, value in entry[name]["raw"].items():
                    writer.add_scalar(f"{name}/{metric}", value, entry["epoch"])
