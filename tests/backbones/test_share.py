"""Hyperedges of clicks and of pairs, against the incidence matrix written out."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dmsrec_jax.backbones.share import hyperedges
from dmsrec_jax.data import Sessions
from tests.backbones.small import N, batch, build


def softmax(logits, where):
    weights = np.where(where, np.exp(logits), 0.0)
    return weights / weights.sum(axis=-1, keepdims=True)


def test_attention_over_the_incidence_matrix():
    built, data = build("share"), batch()
    layer, x = built.backbone.second, built.item_vectors()[data.graph.nodes]
    found = nnx.jit(lambda layer: layer(x, hyperedges(data), data, None, None))(layer)
    x, scale = np.asarray(x), x.shape[1] ** -0.5
    for row in range(N):
        clicks = np.asarray(data.click_node)[np.asarray(data.click_session) == row]
        edges = [{a} for a in clicks] + [{a, b} for a, b in pairwise(clicks)]
        nodes = np.unique(clicks)
        holds = np.array([[node in edge for node in nodes] for edge in edges])
        keys, values = x[nodes] @ layer.keys[...], x[nodes] @ layer.values[...]
        vectors = softmax(np.broadcast_to(layer.context[...] @ keys.T * scale, holds.shape), holds) @ values
        logits = keys @ (vectors @ layer.edge_keys[...]).T * scale
        np.testing.assert_allclose(found[nodes], softmax(logits, holds.T) @ vectors, atol=1e-6)


def test_a_pair_of_one_item_is_dropped_as_one_weight():
    """Its hyperedge holds one node, so it is left out whole or scaled whole, never half."""
    built, twice = build("share"), Sessions(np.array([3, 3], np.int32), np.array([0, 2]))
    data, layer = batch(range(1), twice), built.backbone.first
    layer.edge_keys[...] = jnp.zeros_like(layer.edge_keys[...])  # so all three edges weigh 1/3
    x = built.item_vectors()[data.graph.nodes]

    @jax.vmap
    def shares(key):
        return layer(x, hyperedges(data), data, 0.5, key)[data.click_node[0], 0] / x[data.click_node[0], 0]

    found = np.unique(np.round(shares(jax.random.split(jax.random.key(0), 200)) * 3).astype(int))
    np.testing.assert_array_equal(found, [0, 4, 8, 12])  # 1 · 2 · 2 of the pair, 2 · 2 · 2 of both clicks
