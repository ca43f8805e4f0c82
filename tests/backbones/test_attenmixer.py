"""Attention click by click, written out; padding as released."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dmsrec_jax.layers import head_count
from tests.backbones.small import LENGTH, SESSIONS, N, batch, build, scores

D = 16
model = partial(build, "attenmixer", D, "cosine")


def softmax(logits):
    weights = np.exp(logits)
    return weights / weights.sum(axis=0)


def test_attention_click_by_click():
    built, data = model(), batch()
    backbone, vectors = built.backbone, np.asarray(built.item_vectors())
    h = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    nodes = jnp.asarray(h)[data.graph.nodes]
    found = nnx.jit(lambda of: of.attend(of.queries(nodes, data), nodes, data, None, None))(backbone)
    for row in range(N):
        clicks = h[SESSIONS[row]]
        latest = np.pad(clicks[::-1], ((0, 7), (0, 0)))
        levels = np.stack([getattr(backbone, f"level_{k}")(latest[:k].reshape(-1)) for k in range(1, 8)])
        queries = np.asarray(backbone.query(levels / np.linalg.norm(levels, axis=0)))
        keys, values = np.asarray(backbone.key(clicks)), np.asarray(backbone.value(clicks))
        expected = []
        for head in np.split(np.arange(D), 8):
            alpha = softmax(2 / (1 + np.exp(-keys[:, head] @ queries[:, head].T)))
            beta = softmax(2 * np.sum(alpha**4, axis=1) ** 0.25)
            expected.append(beta @ values[:, head])
        np.testing.assert_allclose(found[row], np.concatenate(expected), atol=1e-5)


def test_released_padding_moves_scores():
    plain, padded, longer = (scores(model(released_padding=n), batch())[:, 1:] for n in (None, LENGTH, LENGTH + 9))
    assert jnp.isfinite(padded).all()
    several = np.array([len(set(SESSIONS[row])) > 1 for row in range(N)])  # else there is nothing to choose from
    assert (jnp.abs(padded - plain).max(1) > 1e-4)[several].all()
    assert (jnp.abs(longer - padded).max(1) > 1e-5)[several].all()


def test_heads_share_the_hidden_size_evenly():
    assert [head_count(8, d) for d in (32, 100, 6, 7, 11)] == [8, 5, 6, 7, 1]
