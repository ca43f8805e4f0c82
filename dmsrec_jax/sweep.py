"""``python -m dmsrec_jax.sweep``: many settings and seeds, as few compiled programs as they allow.

OUT/sweep.json                 settings, data, and the mean and std of each setting's seeds
OUT/<setting>/seed-<seed>/     run folders, as `train` writes them, but without checkpoints
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from dmsrec_jax import cli
from dmsrec_jax.config import SweepConfig
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.data.demo import demo_dataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import check_unlocked, locked, read_json, staged_folder, write_json
from dmsrec_jax.group import train_group
from dmsrec_jax.metrics import METRICS, by_view
from dmsrec_jax.outcome import check_same_settings
from dmsrec_jax.parallel import Devices, split_cpu
from dmsrec_jax.plan import OF_ALL, Member, groups, read_plan
from dmsrec_jax.recipe import Inputs, model_settings, parts, read_artifacts
from dmsrec_jax.results import dataset_identity, print_results, read_results

SCHEMA_VERSION = 1
AT_ONCE = {"cpu": 1}
"""Runs that train at once on a device of a platform: a CPU is busy with one, and two want twice the memory."""
AT_ONCE_ELSEWHERE = 16
JUDGED_BY = sorted(OF_ALL - {"dataset"})
"""Settings that all plans of a folder share: its rows stand in one table."""

console = Console(markup=False, highlight=False)


def sweep(config: SweepConfig) -> None:
    """Trains what of the plan is not there yet, and sums up."""
    settings, members = read_plan(config)
    split_cpu(config.devices)
    devices = Devices(config.devices)
    at_once = config.members_at_once
    if at_once is None:
        at_once = AT_ONCE.get(jax.default_backend(), AT_ONCE_ELSEWHERE)
    if at_once < 1:
        raise InputError(f"--members-at-once {at_once}: at least 1 is due")
    path = members[0].config.dataset
    dataset = SessionDataset.load(path) if path else demo_dataset(Path("datasets"))
    # Nothing is replaced, and no group trains, before all can be. Sessions are split alike for all.
    parts(members[0].config, Inputs(dataset, None, None, {}))
    gathered = [(group, read_artifacts(group[0].config, dataset)) for group in groups(members)]
    for group, inputs in gathered:
        model_settings(group[0].config, inputs)
    summary = open_sweep(config, members, gathered, dataset)
    started = time.perf_counter()
    with locked(config.out):
        for number, (group, inputs) in enumerate(gathered, start=1):
            missing = [member for member in group if member.config.seed not in finished(config.out, member.setting)]
            console.print(f"program {number} of {len(gathered)}: {len(missing)} of {len(group)} runs to do")
            if missing:
                enough = Devices(min(devices.count, len(missing)))  # the rest would train copies
                train_group(config.out, missing, inputs, enough, at_once, console)
        summary["settings"] = sum_up(config.out, settings, members, summary["settings"])
        write_json(config.out / "sweep.json", summary)
    print_sweep(summary)
    console.print(f"{len(members)} runs in {time.perf_counter() - started:.0f} s: {config.out}", soft_wrap=True)


def open_sweep(
    config: SweepConfig,
    members: list[Member],
    gathered: list[tuple[list[Member], Inputs]],
    dataset: SessionDataset,
) -> dict[str, Any]:
    """Makes the folder ready, and gives ``sweep.json`` as it is before any results.

    Raises:
      InputError: the folder holds something else, or runs with other settings or data, or another process is at work
        there.
    """
    out = config.out
    hashes: dict[str, dict[str, str | None]] = {}
    for group, inputs in gathered:
        hashes |= {member.setting: dict(inputs.hashes) for member in group}
    summary = {
        "schema_version": SCHEMA_VERSION,
        "dataset": dataset_identity(dataset),
        **{name: getattr(members[0].config, name) for name in JUDGED_BY},
        "inputs": hashes,
        "settings": [],
    }
    check_unlocked(out)
    if not (out / "sweep.json").is_file() or config.overwrite:
        reads = [path for of in members for path in (of.config.dataset, of.config.intents, of.config.item_text) if path]
        with staged_folder(out, marker="sweep.json", overwrite=config.overwrite, reads=reads) as staged:
            write_json(staged / "sweep.json", summary)
        return summary
    begun = read_json(out / "sweep.json")
    if not isinstance(begun, dict) or begun.get("schema_version") != SCHEMA_VERSION:
        raise InputError(f"{out / 'sweep.json'}: not of schema version {SCHEMA_VERSION}")
    for name in JUDGED_BY:
        if begun.get(name, summary[name]) != summary[name]:
            raise InputError(f"{out}: began with {cli.flag_of(name)} {begun[name]}, not {summary[name]}")
    if begun.get("dataset", {}).get("hash", dataset.hash) != dataset.hash:
        raise InputError(f"{out}: began on another --dataset, by hash; give another --out")
    known = begun.get("inputs", {})
    for member in members:
        for name, digest in hashes[member.setting].items():
            if known.get(member.setting, {}).get(name, digest) != digest:
                began = f"{member.setting} began on another {cli.flag_of(name)}"
                raise InputError(f"{out}: {began}, by hash; give another --out")
        for seed, run in finished(out, member.setting).items():  # of other seeds as well: they are summed up together
            check_same_settings(run, replace(member.config, seed=seed))
    summary |= {"inputs": known | hashes, "settings": begun.get("settings", [])}
    write_json(out / "sweep.json", summary)
    return summary


def sum_up(
    out: Path, settings: dict[str, dict[str, Any]], members: list[Member], begun: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Means and standard deviations over each setting's seeds, of the runs that are there.

    Args:
      out: the sweep's folder.
      settings: of this plan.
      members: its runs.
      begun: what other plans of this folder came to; it stays where this one says nothing of it.
    """
    entries = {entry["name"]: entry for entry in begun}
    for name, overrides in settings.items():
        done = list(finished(out, name).values())
        due = [out / member.folder for member in members if member.setting == name]
        runs = [read_results(folder) for folder in done]
        entry: dict[str, Any] = {"name": name, "overrides": overrides}
        entry["runs"] = [folder.relative_to(out).as_posix() for folder in done]
        entry["missing"] = [folder.relative_to(out).as_posix() for folder in due if folder not in done]
        for key in ("test", "validation", "test_no_intent"):
            found = [run[key] for run in runs if run.get(key)]
            if found:
                rows = np.array([[v[metric] for v in run.values() for metric in METRICS] for run in found])
                entry[key] = by_view(rows.mean(axis=0))
                if len(found) > 1:
                    entry[f"{key}_std"] = by_view(rows.std(axis=0, ddof=1))
        entries[name] = entry
    return list(entries.values())


def finished(out: Path, setting: str) -> dict[int, Path]:
    """A setting's run folders that have results, by their seeds, ascending."""
    runs = {path.parent.name.removeprefix("seed-"): path.parent for path in (out / setting).glob("seed-*/results.json")}
    return {int(seed): runs[seed] for seed in sorted(filter(str.isdecimal, runs), key=int)}


def print_sweep(summary: dict[str, Any]) -> None:
    """Prints a row per setting, mean ± std over its seeds."""
    rows: dict[str, dict[str, Any]] = {}
    for entry in summary["settings"]:
        if "test" in entry:
            rows[entry["name"]] = {"test": entry["test"], "protocol": summary["protocol"]}
            rows[entry["name"]] |= {"std": entry["test_std"]} if "test_std" in entry else {}
        for run in entry["missing"]:
            console.print(f"missing: {run}")
    if rows:
        print_results(rows, console)


def main(argv: Sequence[str] | None = None) -> None:
    cli.run(sweep, SweepConfig, argv, prog="python -m dmsrec_jax.sweep")


if __name__ == "__main__":
    main()
