"""Amazon 2014 reviews (5-core) as sessions: one per user. Beauty gives 20,126 training and 2,237 test users."""

import ast
import gzip
import html
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.progress import Progress

from dmsrec_jax.data.bad_rows import BadRows
from dmsrec_jax.data.config import PrepareAmazon
from dmsrec_jax.data.dataset import Sessions
from dmsrec_jax.data.samples import prefixes, take
from dmsrec_jax.data.splits import n_first
from dmsrec_jax.data.write import Prepared
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import is_text

_MAX_LINE = 1 << 22
"""Characters; a longer line is no review."""


def read_amazon(config: PrepareAmazon) -> Prepared:
    """Reads ``reviews_*_5.json.gz`` and ``meta_*.json.gz`` (one JSON or Python-literal dict per line).

    A user's reviews in time order (ties in file order) are one session. Users are sorted by reviewerID, and the last
    ``test_fraction`` of them tests. An item id is the rank of the ASIN. Rows are all prefixes. Test sessions keep
    items that training does not have.

    Raises:
      InputError: a file is missing, truncated or foreign, a line is bad (and ``skip_bad_rows`` false), the fraction is
        out of range, or nothing is left.
    """
    if not 0 < config.test_fraction < 1:
        raise InputError(f"--test-fraction {config.test_fraction}: must be between 0 and 1")
    reviews, meta = _one(config.raw, "reviews_*_5.json.gz"), _one(config.raw, "meta_*.json.gz")
    bad_reviews, bad_meta = (BadRows(path, skip=config.skip_bad_rows) for path in (reviews, meta))
    users, asins, times = [], [], []
    for number, review in _records(reviews, bad_reviews):
        user, asin, time = (review.get(key) for key in ("reviewerID", "asin", "unixReviewTime"))
        if not (isinstance(user, str) and user and is_text(asin) and asin and type(time) is int):
            bad_reviews.add(number, "reviewerID, asin and unixReviewTime are due")
            continue
        if not abs(time) < 1 << 62:
            bad_reviews.add(number, "unixReviewTime is out of range")
            continue
        users.append(user)
        asins.append(asin)
        times.append(time)
    if not users:
        raise InputError(f"{reviews}: no review in it")
    _, user_of = np.unique(np.array(users), return_inverse=True)
    item_ids, item_of = np.unique(np.array(asins), return_inverse=True)
    order = np.lexsort((np.array(times), user_of))
    lengths = np.bincount(user_of)
    sessions = Sessions((item_of[order] + 1).astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]))
    n_train = n_first(len(sessions), config.test_fraction)
    if not 0 < n_train < len(sessions):
        raise InputError(f"{reviews}: {len(sessions)} users are too few to split")
    train = take(sessions, np.arange(n_train))
    test = take(sessions, n_train + np.flatnonzero(lengths[n_train:] >= 2))
    titles = _read_titles(meta, item_ids.tolist(), bad_meta)
    return Prepared(
        prefixes(train),
        prefixes(test),
        train,
        item_ids.tolist(),
        titles,
        (*bad_reviews.notes(), *bad_meta.notes(), f"{titles.count(''):,} of {len(titles):,} items have no title"),
        (reviews, meta),
    )


def _one(folder: Path, pattern: str) -> Path:
    try:
        found = [file for file in folder.iterdir() if file.match(pattern)]  # glob finds nothing where it may not read
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror or error}") from None
    if len(found) != 1:
        raise InputError(f"{folder}: one {pattern} is due, {len(found)} found")
    return found[0]


def _read_titles(path: Path, item_ids: list[str], bad: BadRows) -> list[str]:
    """The title of each ASIN, entities such as ``&amp;`` unescaped; "" where there is none."""
    titles = dict.fromkeys(item_ids, "")
    for number, product in _records(path, bad):
        asin, title = product.get("asin"), product.get("title", "")
        if not is_text(asin) or not is_text(title):
            bad.add(number, "asin, and title if any, are due as text")
        elif asin in titles:
            titles[asin] = html.unescape(title).strip()
    return list(titles.values())


def _records(path: Path, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line's number, from 1, and record."""
    try:
        with (
            Progress(transient=True) as progress,
            path.open("rb") as compressed,
            gzip.open(compressed, "rt", encoding="utf-8") as lines,
        ):
            task = progress.add_task(escape(f"reading {path.name}"), total=path.stat().st_size)
            number = 0
            while line := lines.readline(_MAX_LINE):
                number += 1
                if number % 1000 == 0:
                    progress.update(task, completed=compressed.tell())
                record = _record(line)
                if record is None:
                    bad.add(number, "a JSON or Python-literal dict is due")
                else:
                    yield number, record
    except (EOFError, zlib.error, UnicodeDecodeError, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: not a whole gzip file of text: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        try:
            record = ast.literal_eval(line.strip())
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return None
    return record if isinstance(record, dict) else None
