"""One frozen dataclass per source of `prepare`: flags and their ``--help``, as in `dmsrec_jax.config`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """What every source of `prepare` takes."""

    out: Path
    """Dataset folder to write."""
    name: str | None = None
    """Name of the data set; the folder's name if left out."""
    overwrite: bool = False
    """Replace a dataset that is there already."""


@dataclass(frozen=True, kw_only=True)
class PrepareFiles(Prepare):
    """What every source but the demo takes."""

    keep_last: int | None = None
    """Rows keep at most this many clicks, the last ones: long sessions cost attention models time. Whole sessions,
    which global graphs read, stay."""


@dataclass(frozen=True, kw_only=True)
class PrepareNpz(PrepareFiles):
    """sessions.npz (rows, targets and whole sessions as integer arrays) with titles.json beside it."""

    raw: Path
    """sessions.npz, or the folder that holds it."""
    augment_prefixes: bool = False
    """Train on every prefix of a session, whatever the rows of the file are. Test rows stay as they are."""
    drop_last_target: bool = False
    """Leave out the test row whose target is its session's last click, as some published evaluations do."""


@dataclass(frozen=True, kw_only=True)
class PreparePickle(PrepareFiles):
    """train.txt and test.txt as the SR-GNN family of repositories writes them; all_train_seq.txt is used if there."""

    raw: Path
    """Folder of the pickles. They may hold lists, tuples and integers, nothing else."""


@dataclass(frozen=True, kw_only=True)
class PrepareDemo(Prepare):
    """The embedded demo: a generated shop of 300 products whose sessions mix two needs. Needs no file."""

    seed: int = 0
    """Seed of the generated sessions."""


@dataclass(frozen=True, kw_only=True)
class PrepareMovieLens(PrepareFiles):
    """MovieLens-1M: the GroupLens folder. One session per user and sitting; the last tenth by time tests."""

    raw: Path
    """Folder with ratings.dat and movies.dat."""
    gap: bool = False
    """End a session 300 s after the previous rating (the paper's wording), not after its first (as released)."""
    augment_prefixes: bool = False
    """Train on every prefix of a session, not only on its last click."""
    skip_bad_rows: bool = False
    """Count and report bad rows instead of stopping at the first."""


@dataclass(frozen=True, kw_only=True)
class PrepareAmazon(PrepareFiles):
    """Amazon 2014 reviews (5-core): one session per user, all its prefixes, split by user."""

    raw: Path
    """Folder with one reviews_*_5.json.gz and the meta_*.json.gz of its category."""
    test_fraction: float = 0.1
    """Share of users, the last ones, that test."""
    skip_bad_rows: bool = False
    """Count and report bad lines instead of stopping at the first."""


@dataclass(frozen=True, kw_only=True)
class PrepareLog(PrepareFiles):
    """What the click logs take."""

    raw: Path
    """The click log: one row per click. White space around ids and titles is no part of them."""
    session_col: str = "session_id"
    """Column of the session (or visit, or user) id."""
    item_col: str = "item_id"
    """Column of the item id."""
    time_col: str = "timestamp"
    """Column of the click's time: seconds or milliseconds since 1970, or ISO 8601, compact such as 20140407 or
    20140407101112 too (UTC unless it says otherwise)."""
    titles: Path | None = None
    """CSV file with a title for each item: columns as --item-col and `title`."""

    min_item_count: int = 5
    """First, drop items with fewer clicks than this."""
    min_session_len: int = 2
    """Then drop sessions with fewer clicks than this."""
    test_fraction: float | None = None
    """Share of sessions, the last ones by their last click, that test; 0.1 unless --test-days is given."""
    test_days: float | None = None
    """Sessions that end within DAYS days of the last one's end test; sessions that the filters drop do not count."""
    augment_prefixes: bool = False
    """Train on every prefix of a session, not only on its last click. Test rows stay one per session."""
    skip_bad_rows: bool = False
    """Count and report bad rows instead of stopping at the first. A session's second row of one time is one of them."""


@dataclass(frozen=True, kw_only=True)
class PrepareCsv(PrepareLog):
    """A click log in CSV with a header line."""

    separator: str = ","
    """The character between fields; `tab` for tabs."""
    quotes: bool = True
    """Fields may be quoted. --no-quotes: a quote is a character like any other."""


@dataclass(frozen=True, kw_only=True)
class PrepareParquet(PrepareLog):
    """A click log in Parquet."""
