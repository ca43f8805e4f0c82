"""Items never clicked, from encoded titles to the list of recommendations."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dmsrec_jax.artifacts import NewItems, write_item_text, write_new_items
from dmsrec_jax.data import SessionDataset, Sessions
from dmsrec_jax.data.samples import prefixes
from dmsrec_jax.data.write import Prepared, write_dataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.recommend import Recommender, main
from dmsrec_jax.runs import load_run
from dmsrec_jax.train import main as train

CATEGORIES, EACH, D_TITLE = 4, 6, 8
N = CATEGORIES * EACH
ENCODER = {"encoder": "test", "encoder_revision": "abc", "pooling": "masked", "embedding_dtype": "float16"}


def titles_of(categories: np.ndarray, seed: int) -> np.ndarray:
    """Encoded titles that tell the category, and little else."""
    rng = np.random.default_rng(seed)
    return (np.eye(D_TITLE)[categories] + 0.1 * rng.normal(size=(len(categories), D_TITLE))).astype(np.float32)


def clicked(category: int) -> list[int]:
    """The items of a category."""
    return list(range(1 + category * EACH, 1 + (category + 1) * EACH))


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> SessionDataset:
    """Sessions that stay in one category."""
    rng = np.random.default_rng(0)
    rows = [rng.permutation(clicked(i % CATEGORIES))[: rng.integers(3, 6)] for i in range(120)]
    sessions = Sessions(np.concatenate(rows).astype(np.int32), np.cumsum([0, *map(len, rows)]))
    ids, titles = ([f"{kind}-{i}" for i in range(1, N + 1)] for kind in ("raw", "Thing"))
    prepared = Prepared(prefixes(sessions), prefixes(sessions), sessions, ids, titles)
    return write_dataset(prepared, tmp_path_factory.mktemp("new") / "shop", name="shop", provenance={})


@pytest.fixture(scope="module")
def new_items(shop: SessionDataset, tmp_path_factory) -> Path:
    """One new item for each category."""
    folder = tmp_path_factory.mktemp("new") / "items"
    names = [np.array([f"{kind}-{c}" for c in range(CATEGORIES)]) for kind in ("new", "Novelty")]
    write_new_items(folder, NewItems(*names, titles_of(np.arange(CATEGORIES), 9), ENCODER), shop)
    return folder


@pytest.fixture(scope="module", params=["srgnn", "gcegnn"])
def titled(request, shop: SessionDataset, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("new")
    vectors = np.concatenate([np.zeros((1, D_TITLE)), titles_of(np.repeat(np.arange(CATEGORIES), EACH), 1)])
    write_item_text(folder / "text", vectors.astype(np.float32), shop, ENCODER)
    flags = ("--backbone", request.param, "--dataset", shop.path, "--out", folder / "run", "--item-text")
    more = ("--d", 16, "--batch-size", 16, "--epochs", 4, "--lr", 0.01)
    train([str(word) for word in (*flags, folder / "text", *more)])
    return folder / "run"


def test_the_new_item_of_the_category_comes_first(titled: Path, new_items: Path):
    recommender = Recommender.load(titled, new_items=new_items)
    sessions = [clicked(c)[i : i + 3] for c in range(CATEGORIES) for i in range(3)]
    items, _ = recommender.recommend(sessions, k=N + CATEGORIES, exclude_seen=False)
    for session, row in zip(sessions, items.tolist(), strict=True):
        assert sorted(row) == list(range(1, N + CATEGORIES + 1))
        category = (session[0] - 1) // EACH
        new = [item for item in row if item > N]
        assert new[0] == N + 1 + category
        others = [item for item in row if item <= N and item not in clicked(category)]
        assert row.index(new[0]) < row.index(others[0]), "before all clicked items of other categories, too"


def test_known_items_keep_their_scores(titled: Path, new_items: Path):
    by_item = []
    for recommender in (Recommender.load(titled), Recommender.load(titled, new_items=new_items)):
        items, scores = recommender.recommend([[1, 2]], k=recommender.n_items, exclude_seen=False)
        by_item.append(scores[0][np.argsort(items[0])])
    np.testing.assert_allclose(by_item[1][:N], by_item[0], atol=1e-5)
    assert len(by_item[1]) == N + CATEGORIES


def test_the_id_part_is_that_of_the_closest_titles(titled: Path):
    """Three titles pointing the same way, of any length, beside one that is missing."""
    model = load_run(titled).model
    ids, text = np.asarray(model.items[...]), np.asarray(model.item_text[...], np.float32)
    directions = text[1:] / np.linalg.norm(text[1:], axis=1, keepdims=True)
    closest = 1 + np.argsort(-(directions @ directions[4]))[:3]
    model.add_items(np.stack([7 * text[5], np.zeros(D_TITLE, np.float32)]))
    np.testing.assert_allclose(model.items[...][:-2], ids)
    np.testing.assert_allclose(model.items[...][-2], ids[closest].mean(0), rtol=1e-5)
    np.testing.assert_allclose(model.items[...][-1], ids[1:].mean(0), rtol=1e-5)


def test_new_items_may_be_clicked(titled: Path, new_items: Path):
    recommender = Recommender.load(titled, new_items=new_items)
    for category in range(CATEGORIES):
        items, scores = recommender.recommend([[f"Novelty-{category}"]], k=3)
        assert np.isfinite(scores).all()
        assert set(items[0].tolist()) <= set(clicked(category))


def test_command_marks_them(titled: Path, new_items: Path, capsys):
    main([str(word) for word in ("--run", titled, "--session", "Thing-1; Thing-2", "--k", 9, "--new-items", new_items)])
    lines = capsys.readouterr().out.splitlines()
    assert any("Novelty-0" in line and "new-0" in line and line.rstrip(" │").endswith("new") for line in lines)
    assert all("new" not in line for line in lines[3:] if "Thing" in line)


def test_other_encoders_and_plain_runs_are_refused(
    titled: Path, shop: SessionDataset, new_items: Path, trained: Path, tmp_path, refused
):
    flags = ("--run", titled, "--session", "Thing-1", "--new-items")
    items = NewItems(np.array(["a"]), np.array(["A"]), np.ones((1, D_TITLE), np.float32), ENCODER)
    for key, value in (("encoder_revision", "def"), ("pooling", "released")):
        other = tmp_path / key
        write_new_items(other, items._replace(provenance=ENCODER | {key: value}), shop)
        assert f"titles encoded with {key} {value}; {titled} was trained with" in refused(main, *flags, other)
    write_new_items(tmp_path / "float32", items._replace(provenance=ENCODER | {"embedding_dtype": "float32"}), shop)
    Recommender.load(titled, new_items=tmp_path / "float32")
    write_new_items(tmp_path / "wide", items._replace(embeddings=np.ones((1, 9), np.float32)), shop)
    assert "vectors of width 9" in refused(main, *flags, tmp_path / "wide")
    assert "nowhere" in refused(main, *flags, tmp_path / "nowhere")
    (tmp_path / "new.csv").write_text("id,title\n")
    assert "made by python -m llm_stage.encode_items" in refused(main, *flags, tmp_path / "new.csv")
    plain = ("--run", trained, "--session", "Film 1", "--new-items", new_items)
    assert "train it with --item-text" in refused(main, *plain)


def test_damaged_folders_are_refused(shop: SessionDataset, titled: Path, new_items: Path, tmp_path):
    folder = shutil.copytree(new_items, tmp_path / "items")
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"dataset_hash": "0"}))
    with pytest.raises(InputError, match="made for another dataset"):
        Recommender.load(titled, new_items=folder)
    (folder / "meta.json").write_text(json.dumps(meta))
    np.save(folder / "new_item_embeddings.npy", np.ones((1, D_TITLE), np.float32))
    with pytest.raises(InputError, match="SHA-256"):
        Recommender.load(titled, new_items=folder)
    short = NewItems(np.array(["a", "b"]), np.array(["A"]), np.ones((2, 3), np.float32), {})
    with pytest.raises(InputError, match="1 rows where 2 are due"):
        write_new_items(tmp_path / "short", short, shop)
