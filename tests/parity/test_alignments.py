"""Values and gradients of the alignments of the original GCE-GNN class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmsrec_jax.alignment import RELEASED_ALIGNMENTS
from tests.parity import golden

THEIRS = {"kl": "kl", "contrastive": "contrastive", "infonce": "info_nce", "directau": "direct_au"}


@pytest.fixture(scope="module")
def arrays():
    path = golden.FOLDER / "align_variants.npz"
    if not path.exists():
        pytest.skip(f"{path} is absent; set DMSREC_GOLDEN_DIR")
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("name", THEIRS)
def test_values_and_gradients(arrays, name):
    structural, semantic = jnp.asarray(arrays["hidden1"]), jnp.asarray(arrays["hidden2"])
    counts = jnp.ones(len(structural), bool)
    value, gradients = jax.value_and_grad(RELEASED_ALIGNMENTS[name], argnums=(0, 1))(structural, semantic, counts)
    theirs = THEIRS[name]
    assert float(value) == pytest.approx(float(arrays[theirs]), abs=1e-6)
    for ours, which in zip(gradients, ("grad1", "grad2"), strict=True):
        np.testing.assert_allclose(ours, arrays[f"{theirs}/{which}"], atol=1e-6, rtol=1e-4)
