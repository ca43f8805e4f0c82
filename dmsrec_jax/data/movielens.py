"""MovieLens-1M as the released code of LLM-DMsRec prepares it.

The GroupLens folder gives 3,416 items, 69,906 training sessions (those of one click included; 65,664 rows) and 7,768
test sessions, of which 5,979 have the two clicks a row takes.
"""

import html
from pathlib import Path

import numpy as np
import polars as pl

from dmsrec_jax.data.bad_rows import BadRows
from dmsrec_jax.data.config import PrepareMovieLens
from dmsrec_jax.data.dataset import Sessions
from dmsrec_jax.data.delimited import Form, scan_text
from dmsrec_jax.data.samples import last_clicks, prefixes, take
from dmsrec_jax.data.splits import n_first
from dmsrec_jax.data.write import Prepared
from dmsrec_jax.errors import InputError

MIN_RATINGS = 5
SITTING = 300
"""Seconds."""
_DAY = 86_400


def read_movielens(config: PrepareMovieLens) -> Prepared:
    """Reads ``ratings.dat`` and ``movies.dat`` (UTF-8 or latin-1, fields separated by ``::``) and makes samples.

    In this order: movies with fewer than 5 ratings go; each user's ratings are sorted by time (ties in file order) and
    cut into UTC days; days with one rating go; a session ends 300 s after its first rating (``gap``: after its previous
    one); sessions are sorted by their last rating (ties by user id, then start); the first 90 % train. Item ids are
    ranks of MovieIDs. One row per session, its last click the target; sessions of one click give none.

    Raises:
      InputError: a file is missing or foreign, a row is bad (and ``skip_bad_rows`` false), or nothing is left.
    """
    ratings, movies = config.raw / "ratings.dat", config.raw / "movies.dat"
    bad = BadRows(ratings, skip=config.skip_bad_rows)
    bad_movies = BadRows(movies, skip=config.skip_bad_rows)
    titles = _read_titles(movies, bad_movies)
    user, movie, time = _read_ratings(ratings, bad)
    kept = np.bincount(movie, minlength=1)[movie] >= MIN_RATINGS
    movie_ids, items = np.unique(movie[kept], return_inverse=True)
    sessions = cut(user[kept], items + 1, time[kept], gap=config.gap)
    n_train = n_first(len(sessions), 0.1)
    if not 0 < n_train < len(sessions):
        raise InputError(f"{ratings}: {len(sessions)} sessions are too few to split")
    train = take(sessions, np.arange(n_train))
    test = take(sessions, n_train + np.flatnonzero(sessions.lengths[n_train:] >= 2))
    notes = (
        "sessions, those of one click included (they give no row, but count in the paper's Table 1): "
        f"{n_train:,} train, {len(sessions) - n_train:,} test",
    )
    return Prepared(
        prefixes(train) if config.augment_prefixes else last_clicks(train),
        last_clicks(test),
        train,
        [str(i) for i in movie_ids],
        [titles.get(int(i), "") for i in movie_ids],
        (*bad_movies.notes(), *bad.notes(), *notes),
        (ratings, movies),
    )


def cut(user: np.ndarray, items: np.ndarray, time: np.ndarray, *, gap: bool) -> Sessions:
    """Cuts ratings into sessions, sorted by their last rating.

    Args:
      user: int [n].
      items: int [n].
      time: seconds since 1970, int [n].
      gap: a session ends `SITTING` seconds after its previous rating, not after its first.
    """
    order = np.lexsort((time, user))
    user, items, time = user[order], items[order], time[order]
    new_day = np.ones(len(user), bool)
    new_day[1:] = (np.diff(user) != 0) | (np.diff(time // _DAY) != 0)
    day = np.cumsum(new_day) - 1
    several = np.bincount(day, minlength=1)[day] > 1
    items, time, day, new_day = items[several], time[several], day[several], new_day[several]
    if gap:
        starts = np.flatnonzero(new_day | (np.diff(time, prepend=time[:1]) > SITTING))
    else:
        starts = _sittings(time, day, np.flatnonzero(new_day))
    offsets = np.append(starts, len(items))
    last = time[offsets[1:] - 1]
    return take(Sessions(items.astype(np.int32), offsets), np.argsort(last, kind="stable"))


def _sittings(time: np.ndarray, day: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Starts of sessions that end `SITTING` seconds after their first rating; ``starts`` are those of the days.

    Each pass finds the next session of every day at once.
    """
    clock = day * 2 * _DAY + time % _DAY
    found = [starts]
    while len(starts):
        following = np.searchsorted(clock, clock[starts] + SITTING, side="right")
        inside = following < len(day)
        starts, following = starts[inside], following[inside]
        starts = following[day[following] == day[starts]]
        found.append(starts)
    return np.sort(np.concatenate(found))


def _read_ratings(path: Path, bad: BadRows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users, movies and times (seconds), int64 [n] each, in file order."""
    # "::" is two separators with nothing between; "more" catches a fifth field.
    fields = ("user", "", "movie", " ", "rating", "  ", "time", "   ", "more")
    try:
        table = (
            scan_text(path, list(fields), Form(":", quotes=False), has_header=False)
            .with_row_index("row")
            .with_columns(pl.col("user", "movie", "rating", "time").cast(pl.Int64, strict=False))
            .with_columns(
                good=pl.all_horizontal(pl.col("user", "movie", "rating", "time") >= 0)
                & pl.all_horizontal(pl.col("", " ", "  ", "   ", "more").is_null())
                & (pl.col("movie") < 1 << 24)
            )
            .with_columns(pl.col("good").fill_null(False))
            .collect()
        )
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path}: not readable: {str(error).splitlines()[0]}") from None
    wrong = table.filter(~pl.col("good"))
    if len(wrong):
        bad.add(wrong["row"][0] + 1, "UserID::MovieID::Rating::Timestamp is due", len(wrong))
    good = table.filter("good")
    if not len(good):
        raise InputError(f"{path}: no rating in it")
    return good["user"].to_numpy(), good["movie"].to_numpy(), good["time"].to_numpy()


def _read_titles(path: Path, bad: BadRows) -> dict[int, str]:
    """Titles without year and translation: the text before " ("."""
    try:
        content = path.read_bytes().removesuffix(b"\n")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:  # as GroupLens has it
        text = content.decode("latin-1")
    titles = {}
    for number, line in enumerate(text.split("\n"), 1):
        fields = line.split("::")
        if len(fields) != 3 or not fields[0].isdecimal():
            bad.add(number, "MovieID::Title::Genres is due")
        else:
            titles[int(fields[0])] = html.unescape(fields[1].split(" (")[0].strip())
    return titles
