import numpy as np
import pytest

from dmsrec_jax.metrics import (
    KS,
    METRICS,
    VIEWS,
    contributions,
    hit_rate,
    mrr,
    ndcg,
    out_of_reach,
    rank_targets,
    summarise,
)


def test_metrics_by_hand():
    ranks = np.array([1, 2, 5, 6])
    np.testing.assert_array_equal(hit_rate(ranks, 5), [1, 1, 1, 0])
    np.testing.assert_allclose(mrr(ranks, 5), [1, 1 / 2, 1 / 5, 0])
    np.testing.assert_allclose(ndcg(ranks, 5), [1, 1 / np.log2(3), 1 / np.log2(6), 0])


def test_summary_is_in_percent_and_keeps_the_views_apart():
    summary = summarise(np.array([[1, 4], [30, 12], [8, 2], [10, 21]], np.int32))
    assert set(summary) == set(VIEWS)
    assert tuple(summary["raw"]) == METRICS
    assert summary["raw"]["hr@5"] == pytest.approx(25)
    assert summary["raw"]["hr@10"] == pytest.approx(75)
    assert summary["exclude_seen"]["hr@20"] == pytest.approx(75)
    assert summary["exclude_seen"]["mrr@5"] == pytest.approx(100 * (1 / 4 + 1 / 2) / 4)
    assert summary["raw"]["ndcg@10"] == pytest.approx(100 * (1 + 1 / np.log2(9) + 1 / np.log2(11)) / 4)


def test_contributions_average_to_the_summary_and_never_fall_with_k():
    ranks = np.random.default_rng(0).integers(1, 40, (500, 2), dtype=np.int32)
    rows = contributions(ranks)
    assert rows.shape == (500, len(VIEWS) * len(METRICS))
    np.testing.assert_allclose(
        100 * rows.mean(axis=0), [summarise(ranks)[view][metric] for view in VIEWS for metric in METRICS]
    )
    by_k = rows.reshape(500, len(VIEWS), 3, len(KS))
    assert (np.diff(by_k, axis=-1) >= 0).all()
    assert by_k.min() >= 0
    assert by_k.max() <= 1


def ranks_of(scores: list[float], target: int, seen: list[int]) -> list[int]:
    row = np.zeros(len(seen), int)
    return rank_targets(np.array([[99.0, *scores]]), np.array([target]), row, np.array(seen))[0].tolist()


@pytest.mark.parametrize(
    ("scores", "target", "seen", "expected"),
    [
        ([4, 3, 2, 1], 1, [4], [1, 1]),
        ([4, 3, 2, 1], 3, [1], [3, 2]),
        ([4, 3, 2, 1], 3, [1, 1, 2], [3, 1]),  # a repeated click is taken out once
        ([4, 3, 2, 1], 2, [4, 3], [2, 2]),  # worse items taken out change nothing
        ([4, 2, 2, 2], 3, [2], [4, 3]),  # ties count against the target
        ([0, 0, 0, 0], 1, [2], [4, 3]),
        ([4, 3, 2, 1], 1, [1, 2], [1, 24]),  # a seen target can never be recommended, not among 20 items either
        ([np.nan, 3, 2, 1], 2, [4], [2, 2]),  # NaN is no way to win
        ([4, np.nan, 2, 1], 2, [1], [4, 3]),
    ],
)
def test_ranks_by_hand(scores, target, seen, expected):
    assert ranks_of(scores, target, seen) == expected


def test_ranks_agree_with_a_plain_loop():
    rng = np.random.default_rng(1)
    n_items, lengths = 30, rng.integers(1, 6, 50)
    scores = rng.integers(0, 10, (50, n_items + 1)).astype(np.float32)
    targets = rng.integers(1, n_items + 1, 50)
    sessions = [rng.integers(1, n_items + 1, length) for length in lengths]
    ranks = rank_targets(scores, targets, np.repeat(np.arange(50), lengths), np.concatenate(sessions))
    for row, (target, session) in enumerate(zip(targets, sessions, strict=True)):
        others = [i for i in range(1, n_items + 1) if i != target and scores[row, i] >= scores[row, target]]
        allowed = [i for i in others if i not in session]
        assert ranks[row, 0] == 1 + len(others)
        assert ranks[row, 1] == (out_of_reach(n_items) if target in session else 1 + len(allowed))
