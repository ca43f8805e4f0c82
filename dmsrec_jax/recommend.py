"""``python -m dmsrec_jax.recommend`` and `Recommender`: the next clicks of sessions that nobody prepared."""

import sys
import unicodedata
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from dmsrec_jax import cli
from dmsrec_jax.artifacts import NewItems, read_new_items
from dmsrec_jax.config import RecommendConfig
from dmsrec_jax.data import Sessions
from dmsrec_jax.errors import InputError
from dmsrec_jax.graphs import Budget, build_graphs, pad_graphs
from dmsrec_jax.results import read_results
from dmsrec_jax.runs import Run, load_run
from dmsrec_jax.steps import eval_top, split_model

BATCH = 256
"""Most sessions per device call."""


class Recommender:
    """A trained model that ranks the catalogue, and items that are new to it, for live sessions.

    >>> recommender = Recommender.load("runs/demo-gcegnn-0")  # doctest: +SKIP
    >>> items, scores = recommender.recommend([["Toy Story", "Jumanji"]], k=5)  # doctest: +SKIP
    """

    def __init__(self, run: Run, new_items: NewItems | None = None) -> None:
        self._run = run
        self.titles = run.dataset.titles
        self.item_ids = run.dataset.item_ids
        self._program, self._params = run.program, run.params
        if new_items is not None:
            self.titles = (self.titles or [""] * len(self.item_ids)) + new_items.titles.tolist()
            self.item_ids = self.item_ids + new_items.ids.tolist()
            model = run.model
            model.add_items(new_items.embeddings)
            self._program, self._params = split_model(model)
        self.n_known = run.dataset.n_items
        self.n_items = len(self.item_ids) - 1
        self._top = jax.jit(
            partial(eval_top, graphdef=self._program.graphdef), static_argnames=("budget", "k", "exclude_seen")
        )

    @classmethod
    def load(
        cls, run: str | Path, dataset: str | Path | None = None, new_items: str | Path | None = None
    ) -> "Recommender":
        """Opens a run folder.

        Args:
          run: folder written by `train` or `import_torch`.
          dataset: where the run's dataset is now; the recorded path if left out.
          new_items: folder written by ``python -m llm_stage.encode_items --new-items``: items never clicked that are
            ranked with the others, and may be clicks of sessions. Their ids are n_items + 1 and on, in its order.

        Raises:
          InputError: no model there, not its dataset, or new items that it cannot place.
        """
        loaded = load_run(Path(run), None if dataset is None else Path(dataset))
        return cls(loaded, None if new_items is None else _new_items(Path(new_items), loaded))

    def recommend(
        self, sessions: Sequence[Sequence[int | str]], k: int = 20, exclude_seen: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` items most likely to be clicked next.

        Args:
          sessions: clicks of each session, oldest first: item ids (int, from 1), raw ids or titles (str).
          k: items per session.
          exclude_seen: leave out the session's own items.

        Returns:
          Item ids int32 [sessions, k], best first, and their logits float32 [sessions, k].

        Raises:
          InputError: an unknown or ambiguous item, an empty session, or ``k`` out of range.
        """
        rows = [[self.item(click) for click in session] for session in sessions]
        for number, row in enumerate(rows):
            if not row:
                raise InputError(f"session {number}: has no clicks")
        room = self.n_items - (max((len(set(row)) for row in rows), default=0) if exclude_seen else 0)
        if not 1 <= k <= room:
            raise InputError(f"k = {k}: 1 to {room} items can be recommended here")
        parts = [self._batch(rows[i : i + BATCH], k, exclude_seen) for i in range(0, len(rows), BATCH)]
        if not parts:
            return np.zeros((0, k), np.int32), np.zeros((0, k), np.float32)
        items, scores = zip(*parts, strict=True)
        return np.concatenate(items), np.concatenate(scores)

    def item(self, name: int | str) -> int:
        """The item id of an item id, or of what `named` finds.

        Raises:
          InputError: it is unknown, or several items have that title.
        """
        if isinstance(name, int | np.integer):
            if not 1 <= name <= self.n_items:
                raise InputError(f"item {name}: ids run from 1 to {self.n_items}")
            return int(name)
        found = self.named(name)
        if len(found) > 1:
            raise InputError(
                f"{name!r}: several items have this title: ids {', '.join(self.item_ids[i] for i in found)}"
            )
        if not found:
            raise InputError(f"{name!r}: no item of {self._run.dataset.name} has this title or id")
        return found[0]

    def named(self, name: str) -> list[int]:
        """The item with this raw id, else those with this title, whatever its case and outer white space."""
        if name in self._by_raw_id:
            return [self._by_raw_id[name]]
        return self._by_title.get(_as_compared(name), [])

    @cached_property
    def _by_raw_id(self) -> dict[str, int]:
        return {raw: item for item, raw in enumerate(self.item_ids) if item}

    @cached_property
    def _by_title(self) -> dict[str, list[int]]:
        items: dict[str, list[int]] = {}
        for item, title in enumerate(self.titles or []):
            if title.strip():
                items.setdefault(_as_compared(title), []).append(item)
        return items

    def _batch(self, rows: list[list[int]], k: int, exclude_seen: bool) -> tuple[np.ndarray, np.ndarray]:
        offsets = np.append(0, np.cumsum([len(row) for row in rows]))
        sessions = Sessions(np.fromiter((i for row in rows for i in row), np.int32, offsets[-1]), offsets)
        read = sessions.last(self._run.settings.n_positions)
        graphs = build_graphs(read)
        # Sizes in powers of two: a live service compiles a handful of programs, not one per batch.
        clicks = _power_of_two(len(graphs.click_nodes) + 1)
        n, longest = _power_of_two(len(rows)), self._run.settings.n_positions
        lengths = tuple(min(longest, clicks // i) for i in range(1, n + 1))
        budget = Budget(n, clicks, clicks, clicks, lengths=lengths)
        device_graphs = jax.tree.map(jnp.asarray, pad_graphs(graphs, budget))
        order = jnp.arange(budget.sessions, dtype=jnp.int32)[None]
        program, params = self._program, self._params
        unread = int((sessions.lengths - read.lengths).max()) if exclude_seen else 0
        wanted = min(_power_of_two(k + unread), self.n_items) if unread else k
        found = self._top(
            program.constants, params, device_graphs, order, budget=budget, k=wanted, exclude_seen=exclude_seen
        )
        items, scores = (np.asarray(array)[0, : len(rows)] for array in found)
        if unread:  # the program leaves out the clicks it reads; earlier ones move behind the rest here
            seen = np.zeros((len(rows), self.n_items + 1), bool)
            seen[np.repeat(np.arange(len(rows)), sessions.lengths), sessions.items] = True
            unseen_first = np.argsort(np.take_along_axis(seen, items, 1), axis=1, kind="stable")[:, :k]
            items, scores = (np.take_along_axis(array, unseen_first, 1) for array in (items, scores))
        return items, scores


def _new_items(folder: Path, run: Run) -> NewItems:
    """Reads new items whose titles are encoded as those that the run was trained with."""
    if not run.settings.d_title:
        raise InputError(f"--new-items {folder}: {run.path} knows items by id alone; train it with --item-text")
    if folder.is_file():
        how = f"python -m llm_stage.encode_items --new-items {folder} --encoder … --dataset … --out FOLDER"
        raise InputError(f"--new-items {folder}: a folder of encoded titles is due, made by {how}")
    items = read_new_items(folder, run.dataset)
    width = items.embeddings.shape[1]
    if width != run.settings.d_title:
        raise InputError(f"{folder}: vectors of width {width}; {run.path} takes {run.settings.d_title}")
    trained = (read_results(run.path).get("item_text") or {}).get("provenance") or {}
    for key in sorted({*trained, *items.provenance} - {"embedding_dtype"}):
        if trained.get(key) != items.provenance.get(key):
            raise InputError(
                f"{folder}: titles encoded with {key} {items.provenance.get(key)}; {run.path} was trained with "
                f"{trained.get(key)}"
            )
    return items


def _as_compared(title: str) -> str:
    """Accented letters may be one character or two."""
    return unicodedata.normalize("NFC", title).strip().casefold()


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def split(session: str, recommender: Recommender) -> list[str]:
    """The names in a session where ';' separates them; they may hold one, too: the longest that is known counts."""
    parts, names = session.split(";"), []
    widest = 1 + max(name.count(";") for name in (*recommender.item_ids, *(recommender.titles or [])))
    while parts:
        tried = [(n, ";".join(parts[:n]).strip()) for n in range(min(widest, len(parts)), 0, -1)]
        n, name = next((one for one in tried if recommender.named(one[1])), tried[-1])
        names.append(name)
        parts = parts[n:]
    return [name for name in names if name]


def _one_line(text: str) -> str:
    """Without line breaks and other control characters: a terminal would do what they say."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)


def _without_intents(run: Path, view: str) -> str | None:
    """What to know of a run that had intents whenever it was trained, and has none here; None of other runs."""
    settings = cli.read_yaml(run / "config.yaml") if (run / "config.yaml").is_file() else {}
    if not settings.get("intents") or settings.get("intent_dropout"):
        return None
    results = read_results(run) if (run / "results.json").is_file() else {}
    figures = ""
    if "test_no_intent" in results:
        without, beside = (results[key][view]["hr@20"] for key in ("test_no_intent", "test"))
        figures = f": HR@20 {without:.2f} on the test set, {beside:.2f} with them"
    return f"{run}: trained without --intent-dropout, so its rankings for sessions without intents are weak{figures}"


def recommend(config: RecommendConfig) -> None:
    """Prints a table of recommendations for one session."""
    recommender = Recommender.load(config.run, config.dataset, config.new_items)
    session = split(config.session, recommender)
    if not session:
        raise InputError("--session: titles or ids separated by ';' are due")
    unknown = []
    for name in session:
        try:
            recommender.item(name)
        except InputError as error:
            unknown.append(str(error))
    if unknown:
        raise InputError("--session: " + "; ".join(unknown))
    if note := _without_intents(config.run, "exclude_seen" if config.exclude_seen else "raw"):
        print(f"recommend: {note}", file=sys.stderr)
    items, scores = recommender.recommend([list(session)], config.k, config.exclude_seen)
    table = Table("rank", "id", "title", "score", *(["new"] if config.new_items else []))
    for rank, (item, score) in enumerate(zip(items[0].tolist(), scores[0].tolist(), strict=True), start=1):
        title = recommender.titles[item] if recommender.titles else ""
        new = ["new" if item > recommender.n_known else ""] if config.new_items else []
        table.add_row(str(rank), _one_line(recommender.item_ids[item]), _one_line(title), f"{score:.3f}", *new)
    Console(markup=False, highlight=False).print(table)


def main(argv: Sequence[str] | None = None) -> None:
    cli.run(recommend, RecommendConfig, argv, prog="python -m dmsrec_jax.recommend")


if __name__ == "__main__":
    main()
