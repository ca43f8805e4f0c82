"""A sweep's YAML file as a list of runs.

    base:       settings of `train` that all runs share
    seeds:      [0, 1, 2]            0 alone if left out
    grid:       setting → list of values; every combination is run
    settings:   name → settings, one run each; together with ``grid`` every combination of both

Paths are relative to the working directory, as in `train`. A run without intents leaves out what ``base`` says of them,
one of another backbone the rates and ``n_neighbors`` that are none of its own.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dmsrec_jax.backbones import BACKBONES
from dmsrec_jax.cli import from_mapping, read_yaml
from dmsrec_jax.config import SweepConfig, TrainConfig
from dmsrec_jax.errors import InputError
from dmsrec_jax.model import Hyper
from dmsrec_jax.recipe import FUSED_FLAGS, HOW_IT_RUNS, check_flags, foreign_flags, hyper

KEYS = ("base", "seeds", "grid", "settings")
OF_THE_COMMAND = HOW_IT_RUNS | {"seed"}
"""Settings of `train` that a sweep has its own of, or no use for."""
OF_ALL = {"dataset", "protocol", "validation_fraction"}
"""Settings that make results comparable: in ``base`` only."""
OVERRIDES = ("backbone", "dataset", "intents", "item_text", "epochs")
"""Flags of `sweep` that override ``base``."""
LONGEST_NAME = 200
"""Bytes of a setting's name, which is a folder's."""
TRACED = {*Hyper._fields, "seed", "epochs", "patience", "ablation"}
"""Settings that one compiled program trains any values of."""


class Member(NamedTuple):
    """One run of a sweep."""

    setting: str
    config: TrainConfig

    @property
    def folder(self) -> Path:
        """Where its run folder is, inside the sweep's."""
        return Path(self.setting) / f"seed-{self.config.seed}"

    def __str__(self) -> str:
        return f"{self.setting}, seed {self.config.seed}"


def read_plan(command: SweepConfig) -> tuple[dict[str, dict[str, Any]], list[Member]]:
    """Each setting's overrides by its name, and all runs.

    Raises:
      InputError: the file is unreadable, or a key or value in it is wrong; file and key are named.
    """
    path = command.config
    spec = read_yaml(path)
    if unknown := spec.keys() - set(KEYS):
        raise InputError(f"{path}: unknown key {min(map(str, unknown))!r}; known are {', '.join(KEYS)}")
    base = _named(_mapping(spec.get("base"), path, "base"), path, "base")
    if command.base:  # may be a run's config.yaml
        given = {key: value for key, value in read_yaml(command.base).items() if key not in OF_THE_COMMAND}
        base |= _named(given, command.base, "settings")
    base |= {name: value for name in OVERRIDES if (value := getattr(command, name)) is not None}
    settings = _settings(spec, path)
    found = (list(command.seeds), "--seeds") if command.seeds else (spec.get("seeds", [0]), f"{path}: seeds")
    seeds = _seeds(*found)
    members = []
    for name, overrides in settings.items():
        values = base | overrides
        if values.get("intents") is None:
            values = {key: value for key, value in values.items() if key not in FUSED_FLAGS or key in overrides}
        if values.get("backbone") in BACKBONES:
            foreign = foreign_flags(values["backbone"])
            values = {key: value for key, value in values.items() if key not in foreign or key in overrides}
        for seed in seeds:
            config = from_mapping(TrainConfig, {**values, "seed": seed, "devices": 1}, source=path)
            if "backbone" not in values:
                raise InputError(f"{path}: base: backbone is missing; give it there or as --backbone")
            try:
                check_flags(config)
            except InputError as error:
                raise InputError(f"{path}: {name}: {error}") from None
            members.append(Member(name, config))
    _check_distinct(members, settings, path)
    return settings, members


def _check_distinct(members: list[Member], settings: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Refuses settings that are one: such as fused ones where there are no intents."""
    names: dict[TrainConfig, str] = {}
    for member in members:
        if (same := names.setdefault(member.config, member.setting)) != member.setting:
            plain_or_fused = "intents" in settings[same].keys() | settings[member.setting].keys()
            hint = "; --intents would tell plain from fused runs" if plain_or_fused else ""
            raise InputError(f"{path}: the settings {same} and {member.setting} are the same{hint}")


def groups(members: list[Member]) -> list[list[Member]]:
    """Runs of one compiled program on the same data, together."""
    found: dict[Any, list[Member]] = {}
    traced: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(TrainConfig) if f.name in TRACED}
    for member in members:
        # A rate of 0 is left out of the program.
        key = dataclasses.replace(member.config, **traced), jax.tree.structure(hyper(member.config))
        found.setdefault(key, []).append(member)
    return list(found.values())


def _settings(spec: Mapping[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    named = _mapping(spec.get("settings"), path, "settings") or {"": {}}
    grid = _named(_mapping(spec.get("grid"), path, "grid"), path, "grid", own=True)
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"{path}: grid: {key}: a list of values is due")
    found: dict[str, dict[str, Any]] = {}
    for name, overrides in named.items():
        own = _named(_mapping(overrides, path, f"settings: {name}"), path, f"settings: {name}", own=True)
        if both := own.keys() & grid.keys():
            raise InputError(f"{path}: settings: {name}: {min(both)} is in grid as well")
        for values in itertools.product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True))
            words = [str(name)] if name else []
            words += [f"{key}={Path(value).name if isinstance(value, str) else value}" for key, value in chosen.items()]
            label = re.sub(r"[^\w.=,+-]+", "-", ",".join(words)).strip("-.") or "base"
            if label in ("lock", "sweep.json") or len(label.encode()) > LONGEST_NAME:
                raise InputError(f"{path}: no folder can be called {label}")
            if label in found:
                raise InputError(f"{path}: two settings are called {label}")
            found[label] = own | chosen
    return found


def _seeds(seeds: Any, place: str) -> tuple[int, ...]:
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise InputError(f"{place}: a list of whole numbers is due, none below 0")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{place}: one is there twice")
    return tuple(seeds)


def _mapping(value: Any, path: Path, place: str) -> dict[str, Any]:
    if not isinstance(value or {}, dict):
        raise InputError(f"{path}: {place}: a mapping is due")
    return dict(value or {})


def _named(values: Mapping[str, Any], path: Path, place: str, *, own: bool = False) -> dict[str, Any]:
    """Keys with ``_`` for ``-``, all of them settings that may stand in that place."""
    named = {str(key).replace("-", "_"): value for key, value in values.items()}
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    for key in named:
        if key not in known:
            raise InputError(f"{path}: {place}: unknown key {key!r}; known are {', '.join(sorted(known))}")
        if key in OF_THE_COMMAND or (own and key in OF_ALL):
            raise InputError(f"{path}: {place}: {key} is no setting that a sweep varies")
    return named
