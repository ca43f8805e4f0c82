"""From a training command's flags to the data, the model and the traced settings of a run."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dmsrec_jax.alignment import ALIGNMENTS
from dmsrec_jax.artifacts import Intents, read_intents, read_item_text
from dmsrec_jax.backbones import BACKBONES, own_score, padded, rates, reads
from dmsrec_jax.cli import flag_of
from dmsrec_jax.config import TrainConfig
from dmsrec_jax.data import SessionDataset, Sessions, Split
from dmsrec_jax.data.splits import validation_split
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import read_json, sha256
from dmsrec_jax.graphs import IntentRows
from dmsrec_jax.intents import intent_rows
from dmsrec_jax.item_graph import ItemGraph, Members, read_sessions
from dmsrec_jax.layers import ReleasedFusion
from dmsrec_jax.model import Hyper, ModelSettings

ALIGN_WEIGHT = 0.7
"""λ where neither a flag nor the released code gives one: that of the GCE-GNN in the paper's tables and figures."""

DROPOUT = ("dropout_global", "dropout_local", "dropout_layers", "feature_dropout", "semantic_dropout", "intent_dropout")
AT_LEAST = dict.fromkeys(
    ("batch_size", "epochs", "patience", "lr_decay_every", "d", "n_neighbors", "released_padding"), 1
) | dict.fromkeys(("lr", "lr_decay", "lr_first_decay", "l2", "validation_fraction", "seed", *DROPOUT), 0)
AT_LEAST |= dict.fromkeys(("align_weight", "alpha", "beta", "device_data_mb", "self_supervision"), 0)
BELOW: dict[str, float] = {"validation_fraction": 1, "seed": 2**32}
BELOW |= dict.fromkeys(DROPOUT, 0.999)  # nearer to 1 a rate is rounded to it
BELOW |= {"d": 2**16, "batch_size": 2**20}  # XLA aborts the process where sizes overflow
"""Numbers that flags accept."""

FUSED_FLAGS = ("semantics", "align", "align_weight", "alpha", "beta", "ablation", "semantic_dropout", "intent_dropout")
"""What means nothing without --intents."""
HOW_IT_RUNS = frozenset(("out", "config", "resume", "overwrite", "check", "tensorboard", "devices", "device_data_mb"))
"""Settings that say where a run goes and how it is carried out, not what is trained."""


class Inputs(NamedTuple):
    """What a run reads."""

    dataset: SessionDataset
    intents: Intents | None
    item_text: np.ndarray | None
    hashes: Mapping[str, str | None]
    """By flag, what says whether a resumed run still reads the same."""


class Parts(NamedTuple):
    """The sessions that train, validate and test, each with its intents where there are any."""

    train: tuple[Split, IntentRows | None]
    valid: tuple[Split, IntentRows | None] | None
    """None under the paper's protocol."""
    test: tuple[Split, IntentRows | None]
    sessions: Sessions
    """Whole sessions of the training part, for the global graph."""


def check_flags(config: TrainConfig) -> None:
    """Refuses numbers that no run can be made with, and flags that would do nothing."""
    for name, least in AT_LEAST.items():
        value, limit = getattr(config, name), BELOW.get(name, math.inf)
        if value is not None and not least <= value < limit:
            most = f" and below {limit}" if name in BELOW else " and finite" if value == math.inf else ""
            bounds = f"at least {least}{most}"
            raise InputError(f"{flag_of(name)} {value}: {bounds} is due")
    plain = TrainConfig(config.backbone)
    for name in FUSED_FLAGS if config.intents is None else ():
        if getattr(config, name) != getattr(plain, name):
            raise InputError(f"{flag_of(name)} {getattr(config, name)}: needs --intents")
    for name in foreign_flags(config.backbone):
        if getattr(config, name) != getattr(plain, name):
            raise InputError(f"{flag_of(name)} {getattr(config, name)}: {config.backbone} has no such setting")
    check_padding(config.released_padding, config.backbone)
    if config.order > 1 and config.backbone != "msgifsr":
        raise InputError(f"--order {config.order}: needs --backbone msgifsr")
    if config.score == "dot" and own_score(config.backbone) == "cosine":
        raise InputError(f"--score dot: the scores of {config.backbone} are cosines")
    if config.released_padding is not None and config.intents is not None and config.backbone == "miasrec":
        raise InputError(f"--released-padding {config.released_padding}: miasrec with --intents reads clicks alone")
    if config.semantics == "released":
        form = released(config)
        idle = form.weight == 0 and config.align_weight is None
        unread = ("align", "alpha", "beta") if form.fuses else set(FUSED_FLAGS) - {"semantics", "align_weight"}
        for name in sorted(unread) if idle else ():
            if getattr(config, name) != getattr(plain, name):
                does_nothing = f"{config.backbone} as released weighs its alignment by 0; give --align-weight"
                raise InputError(f"{flag_of(name)} {getattr(config, name)}: {does_nothing}")


def foreign_flags(backbone: str) -> list[str]:
    """Settings that other backbones read, and this one does not."""
    foreign = {name for other in BACKBONES for name in rates(other)} - set(rates(backbone))
    return sorted(foreign if reads(backbone) is ItemGraph else foreign | {"n_neighbors"})


def check_padding(padding: int | None, backbone: str, longest: int = 1) -> None:
    """Refuses a --released-padding that the backbone does not know, or that is shorter than a session."""
    if padding is not None and not padded(backbone):
        raise InputError(f"--released-padding {padding}: {backbone} never sees padding")
    if padding is not None and padding < longest:
        raise InputError(f"--released-padding {padding}: the longest session has {longest} clicks")


def read_artifacts(config: TrainConfig, dataset: SessionDataset) -> Inputs:
    """Reads and checks what --intents and --item-text name."""
    intents = read_intents(config.intents, dataset) if config.intents else None
    item_text = read_item_text(config.item_text, dataset) if config.item_text else None
    folders = {"intents": config.intents, "item_text": config.item_text}
    hashes = {name: None if folder is None else sha256(folder / "meta.json") for name, folder in folders.items()}
    return Inputs(dataset, intents, item_text, {"dataset": dataset.hash} | hashes)


def provenance(folder: Path | None) -> dict[str, Any] | None:
    """How results refer to an artifact."""
    if folder is None:
        return None
    return {"path": str(folder.absolute()), "provenance": read_json(folder / "meta.json")["provenance"]}


def parts(config: TrainConfig, inputs: Inputs) -> Parts:
    """Training, validation and test rows. The validation rows are the last ones, none under the paper's protocol."""
    dataset, intents = inputs.dataset, inputs.intents

    def with_intents(split: Split, name: str, first: int = 0) -> tuple[Split, IntentRows | None]:
        if intents is None:
            return split, None
        return split, intent_rows(getattr(intents, name), intents.embeddings, first + np.arange(len(split)))

    rows, valid, sessions = dataset.train, None, dataset.sessions
    if config.protocol == "default":
        rows, valid, sessions = validation_split(dataset, config.validation_fraction)
    return Parts(
        with_intents(rows, "train"),
        with_intents(valid, "train", len(rows)) if valid is not None else None,
        with_intents(dataset.test, "test"),
        sessions,
    )


def item_graph(config: TrainConfig, dataset: SessionDataset, sessions: Sessions) -> ItemGraph | Members | None:
    """What the backbone reads of whole training sessions."""
    return read_sessions(reads(config.backbone), sessions, dataset.n_items, config.n_neighbors, dataset.sessions)


def model_settings(config: TrainConfig, inputs: Inputs) -> ModelSettings:
    intents, item_text = inputs.intents, inputs.item_text
    padding = config.released_padding
    check_padding(padding, config.backbone, inputs.dataset.longest)
    return ModelSettings(
        config.backbone,
        inputs.dataset.n_items,
        config.d,
        config.score or own_score(config.backbone),
        max(inputs.dataset.longest, padding or 0),
        config.n_neighbors,
        semantics=None if intents is None else config.semantics,
        d_text=0 if intents is None else intents.embeddings.shape[1],
        ablation=config.ablation,
        d_title=0 if item_text is None else item_text.shape[1],
        released_padding=padding,
        order=config.order,
    )


def hyper(config: TrainConfig) -> Hyper:
    """The traced settings; a rate of 0 is left out of the program."""
    first = config.lr_decay_every if config.lr_first_decay is None else config.lr_first_decay
    found = Hyper(config.lr, config.lr_decay, config.lr_decay_every, first, config.l2)
    found = found._replace(**{name: getattr(config, name) or None for name in rates(config.backbone)})
    if config.intents is None:
        return found
    weight, dropout = config.align_weight, config.semantic_dropout
    if config.semantics == "released":
        form = released(config)
        weight, dropout = (form.weight if weight is None else weight), (form.dropout if dropout is None else dropout)
    return found._replace(
        align=list(ALIGNMENTS).index(config.align),
        align_weight=ALIGN_WEIGHT if weight is None else weight,
        alpha=config.alpha,
        beta=config.beta,
        semantic_dropout=dropout or None,
        intent_dropout=config.intent_dropout or None,
    )


def run_keys(seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """PRNG keys of a run's initial values, dropout and orders."""
    init, dropout, order = jax.random.split(jax.random.key(seed), 3)
    return init, dropout, order


def released(config: TrainConfig) -> ReleasedFusion:
    """How the released code fuses this backbone."""
    form = getattr(BACKBONES[config.backbone], "RELEASED", None)
    if form is None:
        raise InputError(f"--semantics released: the released code has no fused {config.backbone}")
    if config.order > 1:
        raise InputError(f"--semantics released: the released code has no fused {config.backbone} of --order 2 or 3")
    return form
