"""Placebos keep what they should of the real intents, and nothing else."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dmsrec_jax.artifacts import (
    KINDS,
    PARTS,
    IntentLists,
    SessionIntents,
    read_intents,
    read_item_text,
    write_item_text,
)
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.data.write import Prepared, write_dataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.placebo import main, shuffled
from tests.conftest import N_ITEMS, write_tiny_intents


@pytest.fixture(scope="module")
def titles(tiny: SessionDataset, tmp_path_factory) -> Path:
    """Encoded titles as wide as `tiny_intents`; the last item has none."""
    vectors = np.random.default_rng(5).normal(size=(N_ITEMS + 1, 12)).astype(np.float32)
    vectors[[0, -1]] = 0
    path = tmp_path_factory.mktemp("titles") / "titles"
    write_item_text(path, vectors, tiny, {"encoder": "test"})
    return path


@pytest.fixture(scope="module")
def made(tiny: SessionDataset, tiny_intents: Path, titles: Path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("placebos")

    def make(kind: str):
        out = folder / kind
        flags = ("--kind", kind, "--dataset", tiny.path, "--intents", tiny_intents, "--item-text", titles, "--seed", 7)
        if not out.exists():
            main([str(word) for word in (*flags, "--out", out)])
        about = json.loads((out / "meta.json").read_text())["provenance"]
        assert about["engine_label"] == f"placebo: {kind}"
        assert about["intents"]["provenance"] == {"engine": "test"}
        return read_intents(out, tiny)

    return make


def rows(lists) -> list[list[int]]:
    return [lists.ids[a:b].tolist() for a, b in zip(lists.offsets, lists.offsets[1:], strict=False)]


def both(of_part) -> list[tuple]:
    return list(zip(map(tuple, rows(of_part.explicit)), map(tuple, rows(of_part.latent)), strict=True))


def test_shuffled_hands_every_list_to_another_session(made, tiny, tiny_intents):
    real, fake = read_intents(tiny_intents, tiny), made("shuffled")
    np.testing.assert_array_equal(fake.embeddings, real.embeddings)
    for part in PARTS:
        ours, theirs = both(getattr(fake, part)), both(getattr(real, part))
        assert sorted(ours) == sorted(theirs)
        assert np.mean([one == other for one, other in zip(ours, theirs, strict=True)]) < 0.3, "but for equal lists"
        np.testing.assert_array_equal(getattr(fake, part).candidates, getattr(real, part).candidates)


def test_a_lone_session_has_no_other_to_be_handed_to(tiny, tiny_intents):
    alone = _first(read_intents(tiny_intents, tiny).test)
    with pytest.raises(InputError, match="one session alone"):
        shuffled(alone, np.random.default_rng(0))


def _first(of_part):
    lists = (IntentLists(part.offsets[:2], part.ids[: part.offsets[1]]) for part in (of_part.explicit, of_part.latent))
    return SessionIntents(*lists, of_part.candidates[:1])


def test_random_vectors_keep_lists_and_lengths(made, tiny, tiny_intents):
    real, fake = read_intents(tiny_intents, tiny), made("random-vectors")
    assert fake.embeddings.dtype == real.embeddings.dtype
    lengths = [np.linalg.norm(found.embeddings.astype(float), axis=1) for found in (fake, real)]
    np.testing.assert_allclose(*lengths, rtol=2e-3)
    cosines = (fake.embeddings * real.embeddings).sum(1) / lengths[0] / lengths[1]
    assert (np.abs(cosines) < 0.95).all()
    assert all(both(getattr(fake, part)) == both(getattr(real, part)) for part in PARTS)


@pytest.mark.parametrize("kind", ["candidates-mean", "session-text", "popularity"])
def test_items_are_named_by_their_titles(made, tiny, titles, kind):
    fake, vectors = made(kind), read_item_text(titles, tiny)
    assert len(set(fake.titles.tolist())) == len(fake.titles)
    of_title = {title: vectors[item] for item, title in enumerate(tiny.titles)}
    for title, vector in zip(fake.titles.tolist(), fake.embeddings, strict=True):
        np.testing.assert_array_equal(vector, of_title[title])
    for part in PARTS:
        sessions = getattr(tiny, part)
        for row, (explicit, latent) in enumerate(both(getattr(fake, part))):
            clicked = {tiny.titles[item] for item in sessions[row]} - {""}
            candidates = {tiny.titles[item] for item in getattr(fake, part).candidates[row]} - {""}
            explicit, latent = ({fake.titles[i] for i in ids} for ids in (explicit, latent))
            if kind == "candidates-mean":
                assert (explicit, latent) == (candidates & clicked, candidates - clicked)
            if kind == "session-text":
                assert (explicit, latent) == (clicked, set())
            if kind == "popularity":
                assert explicit == set()
                assert latent == set(fake.titles.tolist())


def test_a_candidate_with_the_title_of_a_click_is_explicit(tiny, tmp_path):
    ids = [str(item) for item in range(N_ITEMS)]
    prepared = Prepared(tiny.train, tiny.test, tiny.sessions, ids, ["One"] * N_ITEMS)
    dataset = write_dataset(prepared, tmp_path / "data", name="twins", provenance={"source": "test"})
    write_item_text(tmp_path / "titles", np.ones((N_ITEMS + 1, 12), np.float32), dataset, {"encoder": "test"})
    folders = {"dataset": dataset.path, "intents": write_tiny_intents(tmp_path / "intents", dataset)}
    folders |= {"item-text": tmp_path / "titles", "out": tmp_path / "out"}
    main(["--kind", "candidates-mean", *(str(word) for name in folders for word in (f"--{name}", folders[name]))])
    found = read_intents(tmp_path / "out", dataset)
    assert all(both(getattr(found, part)) == [((0,), ())] * len(getattr(dataset, part)) for part in PARTS)


def test_popularity_names_as_many_as_the_real_ones(made, tiny, tiny_intents):
    real, fake = read_intents(tiny_intents, tiny), made("popularity")
    mean = sum(len(getattr(real.train, kind).ids) for kind in KINDS) / len(tiny.train)
    assert len(fake.titles) == round(mean)
    counts = np.bincount(tiny.sessions.items, minlength=N_ITEMS + 1)
    named = [counts[tiny.titles.index(title)] for title in fake.titles.tolist()]
    assert min(named) >= np.sort(counts[:-1])[-len(named) - 1]


def test_what_is_missing_is_named(tiny, tiny_intents, tiny_titles, made, tmp_path, refused):
    flags = ("--dataset", tiny.path, "--intents", tiny_intents, "--out", tmp_path / "out")
    assert "--kind popularity: needs --item-text" in refused(main, "--kind", "popularity", *flags)
    narrow = ("--kind", "session-text", "--item-text", tiny_titles)
    assert "vectors of width 6; the intents' are 12" in refused(main, *narrow, *flags)
    assert not (tmp_path / "out").exists()
    main([str(word) for word in ("--kind", "shuffled", *flags)])
    assert "give --overwrite" in refused(main, "--kind", "shuffled", *flags)


def test_only_placebos_are_replaced(tiny, broken, tiny_intents, titles, tmp_path, refused):
    """Not what it is made from, other intents, data sets, titles or folders; what a killed command left, yes."""
    out = tmp_path / "out"
    flags = ("--kind", "shuffled", "--dataset", tiny.path, "--intents")
    real, candidates, file = (tmp_path / name for name in ("real", "candidates", "file"))
    shutil.copytree(tiny_intents, real)
    candidates.mkdir()
    (candidates / "candidates.json").write_text("{}")
    file.touch()
    before = (real / "meta.json").read_bytes()
    for more in ((), ("--overwrite",)):
        assert "--intents it is derived from" in refused(main, *flags, real, "--out", real / ".", *more)
        for folder in (real, broken.path, titles, candidates):
            error = refused(main, *flags, tiny_intents, "--out", folder, *more)
            assert f"--out {folder}: holds no placebo, so it is something else" in error
        assert "is not a folder" in refused(main, *flags, tiny_intents, "--out", file, *more)
    assert (real / "meta.json").read_bytes() == before
    main([str(word) for word in (*flags, tiny_intents, "--out", out)])
    assert "give --overwrite" in refused(main, *flags, tiny_intents, "--out", out)
    main([str(word) for word in (*flags, tiny_intents, "--out", out, "--overwrite")])
    assert "--intents it is derived from" in refused(main, *flags, out, "--out", out, "--overwrite")
    (out / "meta.json").unlink()
    (out / ".staged.host.1.abc").mkdir()
    main([str(word) for word in (*flags, tiny_intents, "--out", out)])
    assert "--seed -1: at least 0 is due" in refused(main, *flags, tiny_intents, "--out", tmp_path / "x", "--seed", -1)
