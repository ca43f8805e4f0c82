import numpy as np
import pytest

from dmsrec_jax import bootstrap
from dmsrec_jax.bootstrap import chain_bootstrap, interval


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(5, 2, (400, 3))


def test_one_row_per_chain_gives_the_textbook_standard_error(values):
    means = chain_bootstrap(values, np.arange(400), resamples=2000, seed=0)
    np.testing.assert_allclose(means.mean(axis=0), values.mean(axis=0), atol=0.02)
    np.testing.assert_allclose(means.std(axis=0), values.std(axis=0) / np.sqrt(400), rtol=0.08)


def test_copies_of_a_row_in_its_chain_add_no_certainty(values):
    once = chain_bootstrap(values, np.arange(400), resamples=500, seed=0)
    copied = chain_bootstrap(np.repeat(values, 4, axis=0), np.repeat(np.arange(400), 4), resamples=500, seed=0)
    np.testing.assert_allclose(copied, once)


def test_longer_chains_weigh_more():
    means = chain_bootstrap(np.array([[0.0], [1.0], [1.0], [1.0]]), np.array([0, 1, 1, 1]), resamples=300, seed=0)
    assert set(np.round(means[:, 0], 6)) == {0, 0.75, 1}  # both chains, or one of them twice


def test_blocks_and_row_order_do_not_matter(values, monkeypatch):
    chains = np.sort(np.random.default_rng(1).integers(0, 60, 400))
    whole = chain_bootstrap(values, chains, resamples=100, seed=3)
    order = np.random.default_rng(2).permutation(400)
    np.testing.assert_allclose(chain_bootstrap(values[order], chains[order], resamples=100, seed=3), whole)
    monkeypatch.setattr(bootstrap, "_BLOCK", 130)
    np.testing.assert_allclose(chain_bootstrap(values, chains, resamples=100, seed=3), whole)
    assert (chain_bootstrap(values, chains, resamples=100, seed=4) != whole).any()


def test_pairing_is_tighter_than_two_intervals(values):
    other = values + np.random.default_rng(5).normal(0.1, 0.1, values.shape)
    paired = interval(chain_bootstrap(other - values, np.arange(400), resamples=500, seed=0))
    alone = interval(chain_bootstrap(values, np.arange(400), resamples=500, seed=0))
    assert (paired[:, 0] > 0).all()
    assert (np.ptp(paired, axis=1) < np.ptp(alone, axis=1) / 5).all()


def test_interval_is_the_central_95_percent():
    np.testing.assert_allclose(interval(np.linspace(0, 100, 1001)[:, None]), [[2.5, 97.5]])
