"""Example sessions of a report: what was clicked, offered, named and recommended."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dmsrec_jax.artifacts import KINDS, IntentLists, Intents
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.metrics import VIEWS
from dmsrec_jax.report_data import JudgedRun, intents_folder
from dmsrec_jax.report_page import example
from dmsrec_jax.runs import load_run

CLICKS = 10
"""Last clicks shown of a session."""
CANDIDATES = 8
"""Best candidates shown."""
TOP = 8
"""Recommendations shown."""

Column = tuple[str, list[tuple[str, bool]], int]


class Shown(NamedTuple):
    """A run whose recommendations are shown."""

    run: JudgedRun
    items: np.ndarray
    """int32 [n_test, TOP], seen items excluded."""
    intents: Intents | None
    """Of a fused run."""


def draw(dataset: SessionDataset, n: int, seed: int) -> np.ndarray:
    """``n`` test rows (or all chains there are) drawn at random, of different chains, in their order: int64 [n]."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(dataset.test))
    _, first = np.unique(dataset.test.chains[order], return_index=True)
    return np.sort(order[np.sort(first)[:n]])


def examples(dataset: SessionDataset, runs: Sequence[JudgedRun], rows: np.ndarray) -> list[str]:
    """Test sessions as HTML, with the first plain and the first fused run's recommendations where there are models."""
    shown = [first for kind in (False, True) if (first := _first(runs, dataset, fused=kind))]
    intents = next((one.intents for one in shown if one.intents is not None), None)
    return [_example(dataset, shown, intents, int(row)) for row in rows]


def _first(runs: Sequence[JudgedRun], dataset: SessionDataset, *, fused: bool) -> Shown | None:
    for run in runs:
        if run.is_trained and bool(run.engine) == fused and (not fused or intents_folder(run)):
            model = load_run(run.path, run.dataset.path)
            k, intents = min(TOP, dataset.n_items - dataset.longest), model.read_intents()
            top = model.scorer("test", intents).top(model.params, k, exclude_seen=True, progress=lambda _: None)
            return Shown(run, top, intents)
    return None


def _example(dataset: SessionDataset, shown: Sequence[Shown], intents: Intents | None, row: int) -> str:
    titles, target = dataset.titles or [""] * (dataset.n_items + 1), int(dataset.test.targets[row])

    def listed(items: Sequence[int]) -> list[tuple[str, bool]]:
        return [(titles[item] or f"item {dataset.item_ids[item]}", item == target) for item in items]

    clicks = dataset.test[row].tolist()
    left_out = max(0, len(clicks) - CLICKS)
    columns: list[Column] = [("Clicks, oldest first", listed(clicks[left_out:]), left_out + 1)]
    if intents is not None:
        candidates = intents.test.candidates[row].tolist()
        best = listed(candidates[:CANDIDATES])
        columns.append((f"Candidates, best {len(best)} of {len(candidates)}", best, 1))
        for kind in KINDS:
            named = _named(intents.titles, getattr(intents.test, kind), row, titles[target])
            columns.append((f"{kind.capitalize()} intents", named, 1))
    for one in shown:
        rank = int(one.run.ranks[row, VIEWS.index("exclude_seen")])
        name = f"{'After' if one.run.engine else 'Before'}: {one.run.label}, target at {rank:,}"
        columns.append((name, listed(one.items[row].tolist()), 1))
    ((name, _),) = listed([target])
    return example(f"Target: {name}", columns)


def _named(titles: np.ndarray, lists: IntentLists, row: int, target: str) -> list[tuple[str, bool]]:
    ids = lists.ids[lists.offsets[row] : lists.offsets[row + 1]]
    return [(title, title == target) for title in titles[ids].tolist()]
