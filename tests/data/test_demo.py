"""The embedded demo: deterministic, readable, and neither trivial nor hopeless."""

import json

import numpy as np
import pytest

from dmsrec_jax.data.demo import N_SESSIONS, catalogue, demo_dataset, demo_sessions, prepare_demo, provenance
from dmsrec_jax.data.write import write_dataset
from dmsrec_jax.errors import InputError


def test_catalogue_is_300_unambiguous_titles():
    titles = catalogue()
    assert len(titles) == len({title.lower() for title in titles}) == 300
    assert all(title == title.strip() and len(title.split()) >= 2 for title in titles)


def test_sessions_are_deterministic():
    first, again, other = demo_sessions(), demo_sessions(), demo_sessions(1)
    assert first.items.tobytes() == again.items.tobytes()
    assert first.items.tobytes() != other.items.tobytes()
    assert len(first) == N_SESSIONS
    assert first[0].tolist() == [129, 145, 144, 135, 134, 132]


def test_sessions_mix_two_needs_of_one_category_and_repeat_nothing():
    sessions = demo_sessions()
    owner = np.repeat(np.arange(len(sessions)), sessions.lengths)
    assert len(np.unique(owner * 1000 + sessions.items)) == len(sessions.items)
    category, need = (sessions.items - 1) // 50, (sessions.items - 1) // 25
    starts = sessions.offsets[:-1]
    assert (np.maximum.reduceat(category, starts) == np.minimum.reduceat(category, starts)).all()
    mixed = np.maximum.reduceat(need, starts) != np.minimum.reduceat(need, starts)
    assert 0.6 < mixed.mean() < 0.9


def test_rules_beat_popularity_and_leave_room():
    demo = prepare_demo()
    follows = np.zeros((301, 301))
    owner = np.repeat(np.arange(len(demo.sessions)), demo.sessions.lengths)
    items = demo.sessions.items
    inside = owner[1:] == owner[:-1]
    np.add.at(follows, (items[:-1][inside], items[1:][inside]), 1)
    popularity = np.bincount(items, minlength=301)
    last = demo.test.items[demo.test.offsets[1:] - 1]

    def hit_rate(scores, k=5):
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return (best == demo.test.targets[:, None]).any(axis=1).mean()

    rules = hit_rate(follows[last] + 1e-6 * popularity)
    assert hit_rate(np.tile(popularity, (len(last), 1))) < 0.15
    assert 0.4 < rules < 0.7


def test_demo_dataset_is_written_once_and_mended(tmp_path):
    first = demo_dataset(tmp_path)
    stamp = (tmp_path / "demo" / "meta.json").stat().st_mtime_ns
    assert demo_dataset(tmp_path).hash == first.hash
    assert (tmp_path / "demo" / "meta.json").stat().st_mtime_ns == stamp
    (tmp_path / "demo" / "train_items.npy").write_bytes(b"")
    assert demo_dataset(tmp_path).hash == first.hash


def test_an_older_demo_is_made_anew(tmp_path):
    write_dataset(prepare_demo(1), tmp_path / "demo", name="demo", provenance=provenance() | {"version": 0})
    assert demo_dataset(tmp_path).meta["provenance"]["version"] == provenance()["version"]


@pytest.mark.parametrize(
    "meta",
    [
        {"provenance": {"source": "csv"}},
        {"provenance": provenance(seed=1)},
        {"provenance": {"source": "demo"}},
        {"provenance": "demo"},
        {},
        [],
        None,
    ],
)
def test_what_is_no_demo_is_left_alone(tmp_path, meta):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/mine").touch()
    if meta is not None:
        (tmp_path / "demo/meta.json").write_text(json.dumps(meta))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="demo: holds another data set than the demo"):
        demo_dataset(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
