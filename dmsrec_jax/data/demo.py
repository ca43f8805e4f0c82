"""The embedded demo: a made-up shop whose visitors weigh two needs against each other. Deterministic, needs no file."""

import contextlib
from pathlib import Path

import numpy as np

from dmsrec_jax.data.dataset import SessionDataset, Sessions
from dmsrec_jax.data.samples import prefixes
from dmsrec_jax.data.splits import n_first
from dmsrec_jax.data.write import Prepared, write_dataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import read_json

VERSION = 1
"""Raised whenever the generated data change, so that cached copies are made anew."""

SHOP = {
    ("Ultralight", "Family Comfort"): (
        "Tent, Sleeping Bag, Sleeping Mat, Camping Pillow, Backpack, Rain Cover, Stove, Cooking Pot, Spork Set, "
        "Mug, Water Filter, Water Bottle, Headlamp, Lantern, Camping Chair, Camping Table, Cool Box, Tarp, "
        "Hammock, Guy Rope, Tent Pegs, First Aid Kit, Trekking Poles, Pocket Knife, Camping Towel"
    ),
    ("Everyday", "Chef's Choice"): (
        "Frying Pan, Saucepan, Stockpot, Wok, Casserole Dish, Baking Tray, Cake Tin, Mixing Bowl, Whisk, Spatula, "
        "Rolling Pin, Kitchen Scales, Measuring Jug, Chopping Board, Paring Knife, Bread Knife, Knife Sharpener, "
        "Peeler, Grater, Colander, Salad Spinner, Pepper Mill, Hand Blender, Food Processor, Apron"
    ),
    ("Portrait", "Landscape"): (
        "Prime Lens, Zoom Lens, Lens Hood, Lens Cap, Cleaning Cloth, Filter Kit, Filter Case, Tripod, Ball Head, "
        "Remote Release, Flash, Softbox, Reflector, Light Stand, Backdrop, Memory Card, Card Reader, Spare Battery, "
        "Battery Charger, Camera Strap, Camera Bag, Rain Sleeve, Photo Paper, Picture Frame, Editing Course"
    ),
    ("Marathon", "Trail"): (
        "Running Shoes, Running Socks, Running Shorts, Running Tights, Running Shirt, Base Layer, Windbreaker, "
        "Running Gloves, Running Cap, Sunglasses, Sports Watch, Heart Rate Strap, Hydration Vest, Soft Flask, "
        "Energy Gel, Electrolyte Tablets, Recovery Shake, Foam Roller, Massage Ball, Blister Plasters, "
        "Anti-Chafe Balm, Reflective Belt, Clip-On Light, Gait Insoles, Training Plan"
    ),
    ("Organic", "Travel"): (
        "Pram, Baby Carrier, Car Seat, Changing Mat, Changing Bag, Nappies, Baby Wipes, Nappy Cream, Baby Bath, "
        "Baby Shampoo, Hooded Towel, Sleepsuit, Swaddle Blanket, Cot, Cot Sheet, Night Light, Baby Monitor, "
        "Baby Bottle, Bottle Warmer, Steriliser, Bib, Highchair, Weaning Bowl, Teether, Play Mat"
    ),
    ("Balcony", "Allotment"): (
        "Seed Tray, Potting Compost, Plant Pot, Trowel, Hand Fork, Watering Can, Hose, Hose Reel, Sprinkler, "
        "Plant Food, Tomato Seeds, Herb Seeds, Strawberry Plants, Bean Poles, Garden Twine, Plant Labels, "
        "Secateurs, Gardening Gloves, Kneeler, Rake, Spade, Wheelbarrow, Compost Bin, Cloche, Rain Barrel"
    ),
}
"""Two needs of each category, and its 25 products in the order in which a need calls for them."""

N_PRODUCTS = 25
N_SESSIONS = 3000
MAX_LENGTH = 10


def catalogue() -> list[str]:
    """Titles of items 1 to 300: per category the 25 products for its first need, then those for its second."""
    return [f"{need} {product}" for needs, line in SHOP.items() for need in needs for product in line.split(", ")]


def demo_sessions(seed: int = 0) -> Sessions:
    """Draws `N_SESSIONS` sessions of 3 to `MAX_LENGTH` clicks; none repeats an item.

    A visitor shops in one category, walks its product order in one direction, and weighs two needs. The need that had
    more of the latest clicks is likely to get the next one too. A click goes on from the last product clicked FOR THAT
    NEED, so after a change of need the click before last matters more than the last.

    Args:
      seed: of the PCG64 stream.
    """
    rng = np.random.Generator(np.random.PCG64(seed))

    def choose(*weights: float) -> np.ndarray:
        """One of len(weights) options per session, int64 [N_SESSIONS]. (`random` alone: its stream is stable.)"""
        return np.searchsorted(np.cumsum(weights)[:-1] / sum(weights), rng.random(N_SESSIONS), side="right")

    everyone = np.arange(N_SESSIONS)
    category = choose(*1.0 / np.arange(2, 2 + len(SHOP)))
    direction = 2 * choose(0.5, 0.5) - 1
    lengths = 3 + choose(3, 4, 4, 3, 2, 2, 1, 1)
    place = np.stack([choose(*1.0 / np.arange(1, 1 + N_PRODUCTS))] * 2, axis=1)
    pull = np.stack([0.7 * choose(0.5, 0.5), np.full(N_SESSIONS, 0.35)], axis=1)
    seen = np.zeros((N_SESSIONS, 2, N_PRODUCTS), bool)
    clicks = np.empty((N_SESSIONS, MAX_LENGTH), np.int32)
    for step in range(MAX_LENGTH):
        likely = (pull[:, 1] > pull[:, 0]).astype(np.int64)
        need = np.where(choose(0.7, 0.3) == 0, likely, 1 - likely)
        stride = np.array([1, 2, 3, 9])[choose(0.6, 0.2, 0.1, 0.1)] if step else 0
        product = (place[everyone, need] + direction * stride) % N_PRODUCTS
        while (again := seen[everyone, need, product]).any():
            product = np.where(again, (product + direction) % N_PRODUCTS, product)
        seen[everyone, need, product] = True
        place[everyone, need] = product
        pull *= 0.6
        pull[everyone, need] += 1.0
        clicks[:, step] = 1 + (category * 2 + need) * N_PRODUCTS + product
    kept = np.arange(MAX_LENGTH) < lengths[:, None]
    return Sessions(clicks[kept], np.concatenate([[0], np.cumsum(lengths)]))


def prepare_demo(seed: int = 0) -> Prepared:
    """The demo data set: all prefixes of the sessions, the last tenth of which test.

    Raises:
      InputError: the seed is negative.
    """
    if seed < 0:
        raise InputError(f"--seed {seed}: must be 0 or more")
    sessions = demo_sessions(seed)
    n_train = n_first(N_SESSIONS, 0.1)
    cut = sessions.offsets[n_train]
    train = Sessions(sessions.items[:cut], sessions.offsets[: n_train + 1])
    test = Sessions(sessions.items[cut:], sessions.offsets[n_train:] - cut)
    titles = catalogue()
    return Prepared(prefixes(train), prefixes(test), train, [f"D{i:03d}" for i in range(1, 1 + len(titles))], titles)


def provenance(seed: int = 0) -> dict[str, object]:
    """What ``meta.json`` says of a demo data set."""
    return {"source": "demo", "version": VERSION, "seed": seed}


def demo_dataset(cache_dir: Path) -> SessionDataset:
    """The demo data set of seed 0, written to ``cache_dir / "demo"`` unless it is there unchanged.

    Raises:
      InputError: something else is there.
    """
    path = cache_dir / "demo"
    if path.is_dir() and any(path.iterdir()):
        made, due = None, provenance()
        with contextlib.suppress(InputError, KeyError, TypeError):
            made = read_json(path / "meta.json")["provenance"]
        if not isinstance(made, dict) or any(made.get(key) != due[key] for key in ("source", "seed")):
            raise InputError(f"{path}: holds another data set than the demo; name it with --dataset, or move it away")
        if made.get("version") == due["version"]:
            with contextlib.suppress(InputError):  # damaged or of another schema: made anew below
                return SessionDataset.load(path, verify=True)
    return write_dataset(prepare_demo(), path, name="demo", provenance=provenance(), overwrite=True)
