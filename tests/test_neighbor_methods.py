import numpy as np
import pytest
from scipy import sparse

from dmsrec_jax import neighbor_methods as nb
from dmsrec_jax.data import Sessions

N_ITEMS = 12


def csr(rows: list[list[int]]) -> Sessions:
    return Sessions(np.concatenate(rows).astype(np.int32), np.cumsum([0, *map(len, rows)]))


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return [rng.integers(1, N_ITEMS + 1, rng.integers(1, 9)).tolist() for _ in range(60)]


@pytest.fixture(scope="module")
def queries():
    rng = np.random.default_rng(1)
    return [rng.integers(1, N_ITEMS + 1, rng.integers(1, 7)).tolist() for _ in range(25)]


def last_places(row: list[int]) -> dict[int, int]:
    return {item: place for place, item in enumerate(row)}


def test_rules_by_hand():
    sessions = csr([[1, 2, 3], [2, 1]])
    settings = {"source_damping": 0.0, "target_damping": 0.0, "steps": 10}
    last = nb.fit_rules(sessions, 3, decay=0.0, **settings)(csr([[2], [1, 2], [3]]))
    np.testing.assert_allclose(last, [[0, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0]])
    both = nb.fit_rules(sessions, 3, decay=0.5, **settings)(csr([[1, 2]]))
    np.testing.assert_allclose(both, [[0, 1, 0.5, 1 + 0.5 * 0.5]])
    near = nb.fit_rules(sessions, 3, decay=0.0, **settings | {"steps": 1})(csr([[1]]))
    np.testing.assert_allclose(near, [[0, 0, 1, 0]])
    # Items 1, 2, 3 have 2, 2, 1 clicks; one is added to each.
    damped = nb.fit_rules(sessions, 3, decay=0.0, **settings | {"source_damping": 1.0, "target_damping": 0.5})
    np.testing.assert_allclose(damped(csr([[2]])), [[0, 1 / 3 / 3**0.5, 0, 1 / 3 / 2**0.5]], rtol=1e-6)


def test_rules_agree_with_a_plain_loop(rows, queries):
    rules = np.zeros((N_ITEMS + 1, N_ITEMS + 1))
    for row in rows:
        for i in range(len(row)):
            for j in range(i + 1, min(len(row), i + 4)):
                rules[row[i], row[j]] += 1 / (j - i)
    expected = [sum(0.7**back * rules[item] for back, item in enumerate(reversed(query))) for query in queries]
    scorer = nb.fit_rules(csr(rows), N_ITEMS, decay=0.7, source_damping=0.0, target_damping=0.0, steps=3)
    np.testing.assert_allclose(scorer(csr(queries)), expected, rtol=1e-5)


def test_itemknn_is_the_shrunk_cosine(rows, queries):
    holds = np.array([[item in row for item in range(N_ITEMS + 1)] for row in rows], float)
    support = holds.sum(axis=0) + 20
    cosine = holds.T @ holds / np.sqrt(np.outer(support, support))
    np.fill_diagonal(cosine, 0)
    expected = [sum(0.5**back * cosine[item] for back, item in enumerate(reversed(query))) for query in queries]
    np.testing.assert_allclose(
        nb.fit_itemknn(csr(rows), N_ITEMS, decay=0.5, shrinkage=20.0)(csr(queries)), expected, rtol=1e-5, atol=1e-7
    )


def test_pop_counts_clicks():
    np.testing.assert_array_equal(nb.fit_pop(csr([[1, 2], [2, 3, 2]]), 3)(csr([[1], [3]])), [[0, 1, 3, 1]] * 2)


def test_vsknn_agrees_with_a_plain_loop(rows, queries):
    expected = np.zeros((len(queries), N_ITEMS + 1))
    for scores, query in zip(expected, queries, strict=True):
        places = last_places(query)
        for row in rows:
            shared = [places[item] for item in set(row) & set(query)]
            similarity = sum((place + 1) / len(query) for place in shared) / np.sqrt(len(set(row)))
            for item in set(row) if shared else ():
                scores[item] += similarity / (len(query) - max(shared))
    np.testing.assert_allclose(nb.fit_vsknn(csr(rows), N_ITEMS, k=1000)(csr(queries)), expected, rtol=1e-5)


def test_stan_agrees_with_a_plain_loop(rows, queries):
    expected = np.zeros((len(queries), N_ITEMS + 1))
    for scores, query in zip(expected, queries, strict=True):
        places = last_places(query)
        for number, row in enumerate(rows):
            shared = {places[item]: item for item in set(row) & set(query)}
            similarity = sum(np.exp(-(len(query) - 1 - place) / 2) for place in shared) / np.sqrt(len(set(row)))
            recency = np.exp(-(len(rows) - 1 - number) / len(rows) / 0.5)
            own = last_places(row)
            for item in own if shared else ():
                distance = abs(own[item] - own[shared[max(shared)]])
                scores[item] += similarity * recency * np.exp(-distance / 3)
    scorer = nb.fit_stan(csr(rows), N_ITEMS, k=1000, click_span=2.0, session_span=0.5, order_span=3.0)
    np.testing.assert_allclose(scorer(csr(queries)), expected, rtol=1e-5)


def test_nearest_neighbors_only():
    sessions = csr([[1, 4], [1, 2, 5], [1, 2, 3, 6]])  # cosines with [1, 2]: 0.5, 0.82, 0.71
    assert np.flatnonzero(nb.fit_vsknn(sessions, 6, k=1)(csr([[1, 2]]))).tolist() == [1, 2, 5]
    assert np.flatnonzero(nb.fit_vsknn(sessions, 6, k=2)(csr([[1, 2]]))).tolist() == [1, 2, 3, 5, 6]


def test_largest_agrees_with_sorting():
    dense = np.random.default_rng(0).random((20, 30), np.float32)
    dense[dense < 0.7] = 0
    row, column, value = nb._largest(sparse.csr_array(dense), 5)
    kept = np.zeros_like(dense)
    kept[row, column] = value
    for i, line in enumerate(dense):
        best = np.sort(line)[-5:]
        np.testing.assert_array_equal(np.sort(kept[i][kept[i] > 0]), best[best > 0])


def test_of_equally_near_sessions_the_latest_vote():
    sessions = csr([[1, 2], [1, 3], [1, 4], [5, 6]])
    assert np.flatnonzero(nb.fit_vsknn(sessions, 6, k=2)(csr([[1]]))).tolist() == [1, 3, 4]


@pytest.mark.parametrize("name", nb.METHODS)
def test_scores_do_not_depend_on_the_batch(name, rows, queries):
    method = nb.METHODS[name]
    settings = {setting: values[-1] for setting, values in method.grid.items()}
    scorer = method.fit(csr(rows), N_ITEMS, **settings | ({"k": 5} if "k" in settings else {}))
    together = scorer(csr(queries))
    assert together.shape == (len(queries), N_ITEMS + 1)
    np.testing.assert_array_equal(np.concatenate([scorer(csr([query])) for query in queries]), together)


def test_a_session_of_unknown_items_scores_nothing():
    unknown = csr([[5]])
    for name in ("itemknn", "sr", "vsknn", "stan"):
        method = nb.METHODS[name]
        scorer = method.fit(csr([[1, 2], [2]]), 5, **{setting: values[0] for setting, values in method.grid.items()})
        assert not scorer(unknown).any()
