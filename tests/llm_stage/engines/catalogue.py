"""A hand-made catalogue whose categories a person tells apart at once, sessions within them, and candidates across."""

from pathlib import Path
from typing import Any

import numpy as np

from dmsrec_jax.data import SessionDataset, Sessions
from dmsrec_jax.data.samples import prefixes
from dmsrec_jax.data.write import Prepared, write_dataset
from llm_stage.config import RunConfig
from llm_stage.engines.base import Answer, Questions

CATEGORIES = {
    "camping": [
        "Two-Person Ultralight Tent",
        "Down Sleeping Bag for Winter Camping",
        "Portable Camping Stove with Gas Canister",
        "Waterproof Hiking Backpack 50 Litres",
        "Inflatable Sleeping Mat for Camping",
        "LED Camping Lantern, Rechargeable",
    ],
    "make-up": [
        "Long-Lasting Red Lipstick",
        "Waterproof Mascara, Black",
        "Matte Foundation Cream, Ivory",
        "Eyeshadow Palette, Nude Shades",
        "Liquid Eyeliner Pen",
        "Blush Powder with Brush, Pink",
    ],
    "kitchen": [
        "Cast Iron Frying Pan, 26 cm",
        "Chef's Knife, Stainless Steel",
        "Set of Three Mixing Bowls",
        "Non-Stick Baking Tray",
        "Wooden Cutting Board",
        "Stainless Steel Saucepan with Lid",
    ],
    "guitar": [
        "Acoustic Guitar Strings, Light Gauge",
        "Electric Guitar Amplifier, 20 Watt",
        "Guitar Capo for Acoustic Guitars",
        "Clip-On Guitar Tuner",
        "Padded Guitar Strap, Leather",
        "Set of 12 Guitar Picks",
    ],
}
TITLES = [title for titles in CATEGORIES.values() for title in titles]
SIZE = 6
"""Items of a category; item ids go through the categories in order."""


def write_catalogue(path: Path, titles: list[str] | None = None) -> SessionDataset:
    """The data set; row i of its test part is of category i % 4."""
    titles = titles or TITLES
    starts = np.arange(8) % 4 * SIZE + 1
    sessions = Sessions(
        np.stack([starts, starts + 1, starts + 2, starts + 3], 1).ravel().astype(np.int32), np.arange(9) * 4
    )
    ids = [f"raw-{n}" for n in range(len(titles))]
    prepared = Prepared(prefixes(sessions), prefixes(sessions), sessions, ids, titles)
    return write_dataset(prepared, path, name="catalogue", provenance={"source": "test"})


def questions(n: int = 8) -> Questions:
    """Three items of one category each; candidates: the other three of it, and three of each other, mixed."""
    sessions, candidates = [], []
    for row in range(n):
        category = row % 4
        order = np.random.default_rng(row).permutation(SIZE)
        sessions.append(category * SIZE + 1 + order[:3])
        of_all = [c * SIZE + 1 + np.random.default_rng(row).permutation(SIZE)[3:] for c in range(4)]
        candidates.append(np.random.default_rng(100 + row).permutation(np.concatenate(of_all)))
    flat = Sessions(np.concatenate(sessions).astype(np.int32), np.arange(n + 1) * 3)
    return Questions(flat, np.array(candidates, np.int32))


def share_that_fits(answers: list[Answer]) -> float:
    """Share of picks in the session's category; by chance 0.25."""
    return float(
        np.mean([(pick - 1) // SIZE == row % 4 for row, answer in enumerate(answers) for pick in answer.picks])
    )


def settings(dataset: SessionDataset, engine: str, **flags: Any) -> RunConfig:
    """A `RunConfig` of these flags."""
    nowhere = dataset.path / "nowhere"
    return RunConfig(dataset=dataset.path, candidates=nowhere, out=nowhere, engine=engine, **flags)  # type: ignore[arg-type]
