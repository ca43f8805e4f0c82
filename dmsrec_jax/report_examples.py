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

    role: str
    """What stands before its name."""
    run: JudgedRun
    items: np.ndarray
    """int32 [n_test, TOP], items seen last."""
    intents: Intents | None
    """Of a fused run."""


def draw(dataset: SessionDataset, n: int, seed: int) -> np.ndarray:
    """``n`` test rows (or all chains there are) drawn at random, of different chains, in their order: int64 [n]."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(dataset.test))
    _, first = np.unique(dataset.test.chains[order], return_index=True)
    return np.sort(order[np.sort(first)[:n]])


def choose(runs: Sequence[JudgedRun]) -> tuple[list[JudgedRun], bool]:
    """The models shown, and whether they are one backbone before and after its fusion with intents that are real.

    Where no two runs are, the first plain and the first fused one, a placebo if there is nothing else.
    """
    models = [run for run in runs if run.is_trained]
    plain = [run for run in models if not run.engine]
    fused = sorted((run for run in models if run.engine and intents_folder(run)), key=lambda run: run.is_placebo)
    for after in fused:
        for before in plain:
            if before.results["model"] == after.results["model"] and not after.is_placebo:
                return [before, after], True
    return [*plain[:1], *fused[:1]], False


def examples(dataset: SessionDataset, runs: Sequence[JudgedRun], rows: np.ndarray) -> list[str]:
    """Test sessions as HTML, with the recommendations of the models that `choose` finds."""
    chosen, is_pair = choose(runs)
    roles = ("Before: ", "After: ") if is_pair else [""] * len(chosen)
    shown = [_shown(run, role) for run, role in zip(chosen, roles, strict=True)]
    intents = next((one.intents for one in shown if one.intents is not None), None)
    return [_example(dataset, shown, intents, int(row)) for row in rows]


def _shown(run: JudgedRun, role: str) -> Shown:
    model = load_run(run.path, run.dataset.path)
    k, intents = min(TOP, run.dataset.n_items), model.read_intents()
    top = model.scorer("test", intents).top(model.params, k, exclude_seen=True, progress=lambda _: None)
    return Shown(role, run, top, intents)


def _example(dataset: SessionDataset, shown: Sequence[Shown], intents: Intents | None, row: int) -> str:
    titles, target = dataset.titles_or_empty, int(dataset.test.targets[row])

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
        # Of a small catalogue a session may leave less than was asked for: what it has seen comes last.
        unseen = [item for item in one.items[row].tolist() if item not in (0, *clicks)]
        place = f"at {rank:,}" if rank <= dataset.n_items else "seen already"
        columns.append((f"{one.role}{one.run.label}, target {place}", listed(unseen), 1))
    ((name, _),) = listed([target])
    return example(f"Target: {name}", columns)


def _named(titles: np.ndarray, lists: IntentLists, row: int, target: str) -> list[tuple[str, bool]]:
    ids = lists.ids[lists.offsets[row] : lists.offsets[row + 1]]
    return [(title, title == target) for title in titles[ids].tolist()]
