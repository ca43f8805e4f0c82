"""MovieLens rules on a miniature in the GroupLens format, with a hand-computed expectation."""

import numpy as np
import pytest

from dmsrec_jax.data.config import PrepareMovieLens
from dmsrec_jax.data.movielens import cut, read_movielens
from dmsrec_jax.errors import InputError

DAY = 86_400
MOVIES = """\
10::Toy Story (1995)::Animation
20::City of Lost Children, The (Cité des enfants perdus, La) (1995)::Adventure
30::Star Wars: Episode IV - A New Hope (1977)::Action
40::Rare One (1990)::Drama
"""
# Movie 40 has 4 ratings: it goes, and with it user 3's second day keeps one rating and goes too.
RATINGS = [
    # user 1, day 0: 100 and 400 are within 300 s of the first, 401 is not; 400 and 401 come in file order 401, 400
    (1, 10, 100), (1, 30, 401), (1, 20, 400),
    # user 1, day 1: a tie at 50, in file order 30, 10
    (1, 30, DAY + 50), (1, 10, DAY + 50),
    # user 2, day 0, across midnight: one rating each side, so both days go
    (2, 10, DAY - 1), (2, 20, DAY + 1),
    # user 3, day 0: 40 is rare
    (3, 40, 10), (3, 20, 20), (3, 10, 30),
    (3, 40, 2 * DAY + 1), (3, 10, 2 * DAY + 2),
    # user 4: a chain of gaps below 300 s that is longer than 300 s
    (4, 10, 3 * DAY), (4, 20, 3 * DAY + 200), (4, 30, 3 * DAY + 400), (4, 40, 3 * DAY + 401), (4, 20, 3 * DAY + 500),
    (5, 30, 4 * DAY), (5, 20, 4 * DAY + 300), (5, 40, 4 * DAY + 301), (5, 30, 4 * DAY + 302),
]  # fmt: skip
# Item ids are ranks: 10 → 1, 20 → 2, 30 → 3. Sessions by their last rating.
RELEASED = [[2, 1], [1, 2], [3], [3, 1], [1, 2], [3, 2], [3, 2], [3]]
GAP = [[2, 1], [1, 2, 3], [3, 1], [1, 2, 3, 2], [3, 2, 3]]


def write(folder, ratings=RATINGS, movies=MOVIES, encoding="latin-1"):
    folder.mkdir(exist_ok=True)
    (folder / "movies.dat").write_bytes(movies.encode(encoding))
    lines = [f"{user}::{movie}::4::{time}\n" for user, movie, time in ratings]
    (folder / "ratings.dat").write_text("".join(lines))
    return folder


def rows(sessions):
    return [sessions[i].tolist() for i in range(len(sessions))]


@pytest.mark.parametrize(("gap", "expected"), [(False, RELEASED), (True, GAP)])
def test_sessions_by_hand(tmp_path, gap, expected):
    prepared = read_movielens(PrepareMovieLens(out=tmp_path, raw=write(tmp_path / "raw"), gap=gap))
    assert prepared.item_ids == ["10", "20", "30"]
    assert prepared.titles == ["Toy Story", "City of Lost Children, The", "Star Wars: Episode IV - A New Hope"]
    n_train = int(0.9 * len(expected))
    assert rows(prepared.sessions) == expected[:n_train]
    assert rows(prepared.train) == [s[:-1] for s in expected[:n_train] if len(s) > 1]
    assert prepared.train.targets.tolist() == [s[-1] for s in expected[:n_train] if len(s) > 1]
    assert rows(prepared.test) == [s[:-1] for s in expected[n_train:] if len(s) > 1]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_titles_in_both_encodings(tmp_path, encoding, end):
    movies = MOVIES.replace("Toy Story", "Åre, Misérables\x85").replace("\n", end)
    raw = write(tmp_path / "raw", movies=movies, encoding=encoding)
    titles = read_movielens(PrepareMovieLens(out=tmp_path, raw=raw)).titles
    assert titles == ["Åre, Misérables", "City of Lost Children, The", "Star Wars: Episode IV - A New Hope"]


def test_prefixes_augment_training_alone(tmp_path):
    raw = write(tmp_path / "raw")
    plain = read_movielens(PrepareMovieLens(out=tmp_path, raw=raw, gap=True))
    augmented = read_movielens(PrepareMovieLens(out=tmp_path, raw=raw, gap=True, augment_prefixes=True))
    assert len(augmented.train) == sum(len(s) - 1 for s in GAP[:4])
    assert rows(augmented.test) == rows(plain.test)


def plain_cut(user, items, time, gap):
    """The rules as a loop: sessions of one user and UTC day."""
    days = {}
    for i in sorted(range(len(user)), key=lambda i: (user[i], time[i])):
        days.setdefault((user[i], time[i] // DAY), []).append(i)
    sessions = []
    for day in days.values():
        if len(day) == 1:
            continue
        current = [day[0]]
        for i in day[1:]:
            if time[i] - time[current[-1] if gap else current[0]] > 300:
                sessions.append(current)
                current = []
            current.append(i)
        sessions.append(current)
    return [[items[i] for i in s] for s in sorted(sessions, key=lambda s: time[s[-1]])]


@pytest.mark.parametrize("gap", [False, True])
def test_cut_agrees_with_a_plain_loop(gap):
    rng = np.random.Generator(np.random.PCG64(3))
    user, items = rng.integers(0, 9, 3000), rng.integers(1, 50, 3000)
    time = rng.integers(0, 6, 3000) * DAY + rng.integers(0, DAY // 4, 3000) // 40 * 40
    expected = plain_cut(user.tolist(), items.tolist(), time.tolist(), gap)
    assert rows(cut(user, items, time, gap=gap)) == expected


@pytest.mark.parametrize("line", ["1::10::4", "1::10::4::5::6", "x::10::4::5", "", "1,10,4,5", "1::-1::4::5"])
def test_bad_ratings_are_named_or_counted(tmp_path, line):
    raw = write(tmp_path / "raw")
    lines = (raw / "ratings.dat").read_text().splitlines()
    (raw / "ratings.dat").write_text("\n".join([*lines[:3], line, *lines[3:]]) + "\n")
    with pytest.raises(InputError, match=r"ratings\.dat: line 4: UserID::MovieID::Rating::Timestamp is due"):
        read_movielens(PrepareMovieLens(out=tmp_path, raw=raw))
    prepared = read_movielens(PrepareMovieLens(out=tmp_path, raw=raw, skip_bad_rows=True))
    assert "bad rows skipped: 1, the first in line 4" in prepared.notes[0]
    assert rows(prepared.sessions) == RELEASED[:7]
