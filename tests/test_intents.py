"""Intents of sessions, from the artifact's lists to the means of a packed batch, against plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmsrec_jax.graphs import build_graphs, pack
from dmsrec_jax.intents import intent_rows
from dmsrec_jax.orders import batch_budget, fixed_order
from dmsrec_jax.semantics import mean_intents
from tests.conftest import random_intents, random_sessions

N, N_INTENTS, D_TEXT = 40, 9, 5
BOTH = jnp.array([True, True])


@pytest.fixture(scope="module")
def intents():
    return random_intents(np.random.default_rng(3), N, N_INTENTS)


@pytest.fixture(scope="module", params=[np.float16, np.float32])
def embeddings(request):
    return np.random.default_rng(4).normal(size=(N_INTENTS, D_TEXT)).astype(request.param)


def of_session(lists, session: int) -> list[int]:
    return lists.ids[lists.offsets[session] : lists.offsets[session + 1]].tolist()


def test_rows_are_the_lists_by_turns(intents, embeddings):
    rows = np.array([7, 3, 3, 39, 0])
    found = intent_rows(intents, embeddings, rows)
    assert len(found.offsets) == 2 * len(rows) + 3
    lists = [found.ids[start:stop].tolist() for start, stop in zip(found.offsets, found.offsets[1:], strict=False)]
    due = [of_session(kind, row) for row in rows for kind in (intents.explicit, intents.latent)]
    assert lists == [*due, [], []]
    whole = intent_rows(intents, embeddings)
    np.testing.assert_array_equal(whole.ids, intent_rows(intents, embeddings, np.arange(N)).ids)


@pytest.mark.parametrize("takes_part", [(True, True), (True, False), (False, True)], ids=str)
def test_means_of_a_batch(intents, embeddings, takes_part):
    graphs = build_graphs(random_sessions(1, N), intents=intent_rows(intents, embeddings))
    sessions = np.array([5, N, 0, 39, 17, 17, N])
    budget = batch_budget(graphs, N, 1)
    batch = pack(jax.tree.map(jnp.asarray, graphs), jnp.asarray(sessions), budget)
    assert batch.intents.embeddings.dtype == embeddings.dtype, "the table is not copied to float32"
    means, known = jax.jit(mean_intents)(batch.intents, jnp.array(takes_part))
    assert means.dtype == jnp.float32
    for row, session in enumerate(sessions):
        own = [of_session(kind, session) if session < N else [] for kind in (intents.explicit, intents.latent)]
        own = [ids if part else [] for ids, part in zip(own, takes_part, strict=True)]
        assert bool(known[row]) == any(own)
        for kind in (0, 1):
            if any(own):
                due = embeddings[own[kind] or own[1 - kind]].astype(np.float32).mean(0)
                np.testing.assert_allclose(means[row, kind], due, atol=1e-6)
    assert any(not known[row] for row in range(len(sessions)))


def test_no_batch_exceeds_the_budget(intents, embeddings):
    graphs = build_graphs(random_sessions(2, N), intents=intent_rows(intents, embeddings))
    order = fixed_order(graphs, 8)
    budget = batch_budget(graphs, 8, len(order))
    assert budget.intents < len(graphs.intents.ids)
    device = jax.tree.map(jnp.asarray, graphs)
    packed = [pack(device, jnp.asarray(sessions), budget).intents for sessions in order]
    sizes = np.diff(graphs.intents.offsets).reshape(-1, 2)
    for sessions, found in zip(order, packed, strict=True):
        np.testing.assert_array_equal(found.counts, sizes[sessions])
        assert (np.asarray(found.owner) == 2 * len(sessions)).sum() == budget.intents - sizes[sessions].sum()


def test_sessions_without_any_intents(embeddings):
    empty = random_intents(np.random.default_rng(0), 3, N_INTENTS)
    none = [lists._replace(offsets=np.zeros(4, np.int32), ids=lists.ids[:0]) for lists in empty[:2]]
    graphs = build_graphs(
        random_sessions(3, 3), intents=intent_rows(empty._replace(explicit=none[0], latent=none[1]), embeddings)
    )
    batch = pack(jax.tree.map(jnp.asarray, graphs), jnp.arange(4), batch_budget(graphs, 4, 1))
    means, known = mean_intents(batch.intents, BOTH)
    assert not known.any()
    assert jnp.isfinite(means).all()
