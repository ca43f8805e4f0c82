"""``python -m dmsrec_jax.placebo``: intents that know less than an LLM, for telling what a gain is due to.

shuffled          each session has another session's intents
random-vectors    the intents named, but each with a random vector of the same length
candidates-mean   every candidate is named, as if the LLM chose nothing
popularity        every session has the same intents: the most clicked items, as many as a session has on average
session-text      the session's own items, as explicit intents
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dmsrec_jax import cli
from dmsrec_jax.artifacts import (
    KINDS,
    PARTS,
    IntentLists,
    Intents,
    SessionIntents,
    read_intents,
    read_item_text,
    write_intents,
)
from dmsrec_jax.config import PlaceboConfig
from dmsrec_jax.data import SessionDataset, Sessions
from dmsrec_jax.data.samples import ragged
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import check_no_file, read_json, sha256

OF_TITLES = ("candidates-mean", "popularity", "session-text")
"""Kinds that name items, and so need their encoded titles."""

Named = tuple[np.ndarray, np.ndarray]
"""Row and item of each intent."""


def placebo(config: PlaceboConfig) -> None:
    """Writes an intents folder derived from a real one."""
    if config.seed < 0:
        raise InputError(f"--seed {config.seed}: at least 0 is due")
    dataset = SessionDataset.load(config.dataset)
    _check_out(config)  # before the work
    real = read_intents(config.intents, dataset)
    rng = np.random.default_rng(config.seed)
    if config.kind == "shuffled":
        made = real._replace(train=shuffled(real.train, rng), test=shuffled(real.test, rng))
    elif config.kind == "random-vectors":
        made = real._replace(embeddings=random_vectors(real.embeddings, rng))
    else:
        made = of_titles(config, dataset, real)
    provenance: dict[str, Any] = {"engine_label": f"placebo: {config.kind}", "placebo": config.kind}
    provenance |= {"seed": config.seed, "intents": _origin(config.intents)}
    if config.kind in OF_TITLES and config.item_text is not None:
        provenance["item_text"] = _origin(config.item_text)
    write_intents(config.out, made, dataset, provenance, overwrite=config.overwrite)
    console = Console(markup=False, highlight=False)
    console.print(f"placebo: {config.kind}, {len(made.titles):,} distinct intents: {config.out}", soft_wrap=True)


def _check_out(config: PlaceboConfig) -> None:
    """Refuses to replace what is no placebo: real intents may have cost hours of a GPU."""
    out = config.out
    check_no_file(out, "--out ")
    if out.resolve() == config.intents.resolve():
        raise InputError(f"--out {out}: would replace the --intents it is derived from")
    there = [file.name for file in out.iterdir()] if out.is_dir() else []
    if all(name.startswith(".") or name.endswith(".npy") for name in there):
        return  # nothing, or what a killed command left
    about = read_json(out / "meta.json") if "meta.json" in there else None
    made = about.get("provenance") if isinstance(about, dict) else None
    if not isinstance(made, dict) or "placebo" not in made:
        raise InputError(f"--out {out}: holds no placebo, so it is something else; remove it yourself")
    if not config.overwrite:
        raise InputError(f"{out}: holds intents already; give --overwrite to replace them")


def _origin(folder: Path) -> dict[str, Any]:
    path = folder / "meta.json"
    return {"path": str(folder.absolute()), "sha256": sha256(path), "provenance": read_json(path)["provenance"]}


def shuffled(of_part: SessionIntents, rng: np.random.Generator) -> SessionIntents:
    """Hands each session's intents to another one: one cycle through all of them, in random order."""
    if len(of_part.candidates) == 1:
        raise InputError("shuffled: of one session alone, so there is no other to hand its intents to")
    order = rng.permutation(len(of_part.candidates))
    given = np.empty_like(order)
    given[order] = np.roll(order, 1)
    return of_part._replace(explicit=_take(of_part.explicit, given), latent=_take(of_part.latent, given))


def _take(lists: IntentLists, rows: np.ndarray) -> IntentLists:
    starts = lists.offsets[rows]
    ids, offsets = ragged(lists.ids, starts, lists.offsets[rows + 1] - starts)
    return IntentLists(offsets.astype(np.int32), ids)


def random_vectors(embeddings: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random directions with the lengths of ``embeddings``, in its shape and dtype."""
    drawn = rng.normal(size=embeddings.shape)
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    return (drawn * lengths / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(embeddings.dtype)


def of_titles(config: PlaceboConfig, dataset: SessionDataset, real: Intents) -> Intents:
    """The kinds that name items of the catalogue.

    Raises:
      InputError: --item-text is missing, does not fit, or is of another width than the intents it stands in for.
    """
    if config.item_text is None:
        raise InputError(f"--kind {config.kind}: needs --item-text, the encoded titles")
    vectors = read_item_text(config.item_text, dataset)
    if vectors.shape[1] != real.embeddings.shape[1]:
        widths = f"{vectors.shape[1]}; the intents' are {real.embeddings.shape[1]}"
        raise InputError(f"{config.item_text}: vectors of width {widths}: encode the titles as the intents were")
    named = {}
    for part in PARTS:
        sessions, candidates = getattr(dataset, part), getattr(real, part).candidates
        if config.kind == "session-text":
            named[part] = {"explicit": _clicked(sessions), "latent": _none()}
        elif config.kind == "popularity":
            top = most_clicked(dataset, vectors, _mean_count(real))
            everyone = np.repeat(np.arange(len(sessions)), len(top)), np.tile(top, len(sessions))
            named[part] = {"explicit": _none(), "latent": everyone}
        else:
            rows, items = np.repeat(np.arange(len(candidates)), candidates.shape[1]), candidates.reshape(-1)
            own = np.isin(_titled(rows, items, dataset), _titled(*_clicked(sessions), dataset))  # eq. (5)
            named[part] = {"explicit": (rows[own], items[own]), "latent": (rows[~own], items[~own])}
    return name_items(named, dataset, vectors, {part: getattr(real, part).candidates for part in PARTS})


def name_items(
    named: dict[str, dict[str, Named]], dataset: SessionDataset, vectors: np.ndarray, candidates: dict[str, np.ndarray]
) -> Intents:
    """Intents that are items of the catalogue; those without a title are left out, and each counts once per session.

    Args:
      named: by part and class.
      dataset: whose titles they get.
      vectors: [n_items + 1, d_text], zeros for items without a title.
      candidates: by part, handed on.
    """
    titled = np.any(vectors != 0, axis=1)
    titles = _titles(dataset)
    used = np.zeros(dataset.n_items + 1, bool)
    for _, items in (pair for of_part in named.values() for pair in of_part.values()):
        used[items] = True
    used &= titled
    names, first, number = np.unique(titles[used], return_index=True, return_inverse=True)
    intent_of = np.full(dataset.n_items + 1, -1)
    intent_of[used] = number

    def lists(pair: Named, n: int) -> IntentLists:
        rows, intents = pair[0], intent_of[pair[1]]
        rows, ids = np.divmod(np.unique((rows * len(names) + intents)[intents >= 0]), max(len(names), 1))
        return IntentLists(np.searchsorted(rows, np.arange(n + 1)).astype(np.int32), ids.astype(np.int32))

    parts = {}
    for part in PARTS:
        explicit, latent = (lists(named[part][kind], len(getattr(dataset, part))) for kind in KINDS)
        parts[part] = SessionIntents(explicit, latent, candidates[part])
    return Intents(names, vectors[np.flatnonzero(used)[first]], **parts)


def most_clicked(dataset: SessionDataset, vectors: np.ndarray, n: int) -> np.ndarray:
    """The ``n`` titled items with most clicks in whole training sessions, the lower id first of equals."""
    clicks = np.bincount(dataset.sessions.items, minlength=dataset.n_items + 1)
    clicks = np.where(np.any(vectors != 0, axis=1), clicks, -1)
    return np.argsort(-clicks, kind="stable")[:n]


def _mean_count(real: Intents) -> int:
    total = len(real.train.explicit.ids) + len(real.train.latent.ids)
    return max(1, round(total / len(real.train.candidates)))


def _clicked(sessions: Sessions) -> Named:
    return np.repeat(np.arange(len(sessions)), sessions.lengths), np.asarray(sessions.items)


def _none() -> Named:
    return np.zeros(0, np.int64), np.zeros(0, np.int64)


def _titled(rows: np.ndarray, items: np.ndarray, dataset: SessionDataset) -> np.ndarray:
    """A number for each row with the title of its item: items may share one."""
    texts, text_of = np.unique(_titles(dataset), return_inverse=True)
    return rows * np.int64(len(texts)) + text_of[items]


def _titles(dataset: SessionDataset) -> np.ndarray:
    return np.array(dataset.titles_or_empty, np.str_)


def main(argv: Sequence[str] | None = None) -> None:
    cli.run(placebo, PlaceboConfig, argv, prog="python -m dmsrec_jax.placebo")


if __name__ == "__main__":
    main()
