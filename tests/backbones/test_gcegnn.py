"""The logits of global neighbours have a gradient of their own."""

import jax
import jax.numpy as jnp
import numpy as np

from dmsrec_jax.backbones.gcegnn import SLOPE, neighbor_logits


def test_gradient_is_that_of_the_equation():
    """Eq. (3) of GCE-GNN as written, differentiated by jax; a hidden value of 0 among the others."""
    rng = np.random.default_rng(0)
    nodes, k, d = 5, 3, 4
    shapes = (nodes, k, d), (nodes, k), (d + 1, d), (d, 1)
    x, counts, w_1, w_2 = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    x, counts = x.at[0, 0].set(0.0), counts.at[0, 0].set(0.0)
    weights = jnp.asarray(rng.normal(size=(nodes, k)), jnp.float32)

    def equation(x, counts, w_1, w_2):
        return (jax.nn.leaky_relu(jnp.concatenate([x, counts[..., None]], -1) @ w_1, SLOPE) @ w_2)[..., 0]

    inputs = x, counts, w_1, w_2
    np.testing.assert_allclose(neighbor_logits(*inputs), equation(*inputs), rtol=1e-6, atol=1e-6)
    found, due = (
        jax.grad(lambda *a, f=f: jnp.sum(weights * f(*a)), argnums=range(4))(*inputs)
        for f in (neighbor_logits, equation)
    )
    for one, other in zip(found, due, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
