"""Tokens, attention within sessions, 1.5-entmax and votes, each against a plain form; the original with α = 1.5."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dmsrec_jax.backbones.blocks import Cut
from dmsrec_jax.backbones.miasrec import OF_MAX, Votes, attend, best_products, entmax, packed_tokens
from dmsrec_jax.config import TrainConfig
from dmsrec_jax.graphs import pack
from dmsrec_jax.recipe import Inputs, model_settings
from dmsrec_jax.runs import new_model
from tests.backbones.small import LENGTH, SESSIONS, N, batch, build, read, scores
from tests.conftest import N_ITEMS
from tests.parity import golden

model = partial(build, "miasrec", score="cosine")


def test_tokens_of_a_session_stand_together():
    data = batch()
    tokens = packed_tokens(data)
    assert (np.diff(tokens.session) >= 0).all()
    items = np.asarray(data.graph.nodes)
    for row in range(N):
        own = np.flatnonzero(np.asarray(tokens.session) == row)
        assert own[0] == tokens.means[row]
        clicks = SESSIONS[row]
        assert items[tokens.node[own[1:]]].tolist() == clicks.tolist()
        assert tokens.place[own].tolist() == [0, *range(len(clicks), 0, -1)]
        assert tokens.repeats[own].tolist() == [1, *((clicks == item).sum() for item in clicks)]


@pytest.mark.parametrize("lengths", [(), (LENGTH,) * N, tuple(sorted(SESSIONS.lengths.tolist())[::-1])])
def test_attention_stays_within_sessions(lengths):
    """Whether each session has a rectangle of its own width, or all have the widest."""
    tokens = packed_tokens(batch(lengths=lengths))
    of_all = jnp.asarray(np.random.default_rng(0).normal(size=(len(tokens.session), 3, 2, 3)), jnp.float32)
    found = jax.jit(attend, static_argnums=(2, 3))(of_all, tokens, None, None)
    query, keys, values = np.moveaxis(np.asarray(of_all), 1, 0)
    for row in range(N):
        own = np.asarray(tokens.session) == row
        for head in range(2):
            weights = np.exp(query[own, head] @ keys[own, head].T * 3**-0.5)
            expected = weights / weights.sum(1, keepdims=True) @ values[own, head]
            np.testing.assert_allclose(found[own, head], expected, atol=1e-5)


def sorted_entmax(x: np.ndarray) -> np.ndarray:
    """The exact threshold, by sorting (Peters et al., ACL 2019)."""
    x = x / 2 - x.max() / 2
    ordered, k = np.sort(x)[::-1], np.arange(1, len(x) + 1)
    mean, squares = np.cumsum(ordered) / k, np.cumsum(ordered**2)
    tau = mean - np.sqrt(np.maximum((1 - (squares - k * mean**2)) / k, 0))
    return np.maximum(x - tau[(tau <= ordered).sum() - 1], 0) ** 2


def test_entmax_and_its_gradient():
    rng = np.random.default_rng(1)
    sizes = [1, 2, 7, 200, 50]
    rows = [rng.normal(size=n) * scale for n, scale in zip(sizes, (1, 5, 1, 1e-3, 30), strict=True)]
    owner = jnp.repeat(jnp.arange(6), jnp.array([*sizes, 3]))
    logits = jnp.asarray(np.concatenate([*rows, np.zeros(3)]), jnp.float32)
    of = jax.jit(partial(entmax, owner=owner, n_owners=5))
    found = of(logits)
    np.testing.assert_allclose(found[:-3], np.concatenate([sorted_entmax(row) for row in rows]), atol=1e-5)
    assert (np.asarray(found) == 0).any()
    upstream = rng.normal(size=len(logits))
    gradient = jax.grad(lambda x: jnp.sum(of(x)[:-3] * upstream[:-3]))(logits)
    for session in range(5):
        own = np.asarray(owner == session)
        slope = np.sqrt(np.asarray(found)[own])
        expected = slope * (upstream[own] - slope @ upstream[own] / slope.sum())
        np.testing.assert_allclose(gradient[own], expected, atol=2e-4)


@pytest.mark.parametrize("cut", [Cut(1, loop=False), Cut(2, loop=True), Cut(3, loop=False)])
def test_the_best_row_has_the_gradient(cut):
    rows, owner = jnp.array([[1.0, 5.0], [3.0, 2.0], [-1.0, 0.0]]), jnp.array([0, 0, 1])
    items = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    best, back = jax.vjp(lambda rows, items: best_products(rows, items, owner, 2, cut), rows, items)
    assert best.tolist() == [[3.0, 5.0, 6.0], [-1.0, 0.0, -1.0]]
    of_rows, of_items = back(jnp.array([[1.0, 2.0, 10.0], [3.0, 4.0, 20.0]]))
    assert of_rows.tolist() == [[10.0, 12.0], [1.0, 0.0], [23.0, 24.0]]
    assert of_items.tolist() == [[0.0, 2.0], [-2.0, 10.0], [-10.0, 50.0]]


@pytest.mark.parametrize("released_padding", [None, LENGTH])
def test_any_cut_gives_the_same(released_padding):
    built, data = model(released_padding=released_padding), batch()
    vectors = built.item_vectors()
    reading = read(built, data)

    def scores(cut: Cut):
        def loss(vectors):
            found = built.backbone.score(reading.z, reading, vectors, None, cut)
            return jnp.sum(found**2), found

        return jax.jit(jax.grad(loss, has_aux=True))(vectors)

    whole = scores(Cut(N_ITEMS + 1, loop=False))
    for cut in (Cut(1, loop=False), Cut(7, loop=False), Cut(7, loop=True)):
        for one, other in zip(whole, scores(cut), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_what_matters_is_learned():
    """Weights in the mean train the map that selects; the released code's are normalised away."""
    for released_padding, trained in ((None, True), (LENGTH, False)):
        graphdef, params, rest = nnx.split(model(released_padding=released_padding), nnx.Param, ...)
        spread = jax.grad(lambda p: nnx.merge(graphdef, p, rest)(batch())[:, 1:].var())  # noqa: B023
        gradients = jax.jit(spread)(params)
        assert bool(jnp.abs(gradients["backbone"]["importance"]["kernel"][...]).max() > 0) == trained


def test_padding_beyond_the_longest_session_keeps_sessions_apart(tiny):
    """Blocks of attention and the table of positions are as wide as the padding."""
    width = tiny.longest + 9
    settings = model_settings(TrainConfig("miasrec", d=6, released_padding=width), Inputs(tiny, None, None, {}))
    program, params = new_model(settings, None, jax.random.key(2))
    built = nnx.merge(program.graphdef, params, program.constants)
    assert len(built.backbone.positions[...]) == width + 1
    alone, together = (scores(built, batch(rows)) for rows in ([4] + [N] * (N - 1), range(N)))
    np.testing.assert_allclose(alone[0, 1:], together[4, 1:], atol=1e-4)


def test_a_session_longer_than_the_padding_leaves_the_others_alone():
    """An imported table of positions may be longer than the padding."""
    built = model(released_padding=LENGTH - 3)
    together = scores(built, batch())
    assert (SESSIONS.lengths > LENGTH - 3).any()
    for row in range(N):
        alone = scores(built, batch([row] + [N] * (N - 1)))
        np.testing.assert_allclose(alone[0, 1:], together[row, 1:], atol=1e-4)


def test_the_original_with_the_same_entmax():
    """Its maximum falls no lower than 0, its mean is unweighted, and item 1 is counted once more: else the same.

    None of its sessions leaves a token out.
    """
    path = golden.FOLDER / "miasrec_plain_alpha1.5.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent; set DMSREC_GOLDEN_DIR")
    file = golden.load(path, released_padding=None)
    built = nnx.merge(file.graphdef, *file.weights, file.constants)
    data = pack(file.graphs, jnp.arange(file.graphs.n_sessions), file.budget)
    reading = read(built, data)
    votes: Votes = reading.memory
    z, items = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in map(np.asarray, (reading.z, built.items[...])))
    compared = 0
    for row, session in enumerate(file.arrays["sessions"]):
        if 1 in session:
            continue
        own = np.asarray(votes.owner) == row
        cosines = z[own] @ items.T
        best = cosines.max(0)
        if own.sum() < len(session) + 1:  # a token left out, or padding
            best = np.maximum(best, 0.0)
        expected = (OF_MAX * best + (1 - OF_MAX) * cosines.mean(0)) / 0.07
        np.testing.assert_allclose(file.arrays["scores"][row], expected, atol=5e-5)
        compared += 1
    assert compared > 3
