"""CSV and Parquet logs: the rules by hand, times, bad rows, and independence of chunks."""

import gzip
import os
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from dmsrec_jax.data.clicklog import read_log
from dmsrec_jax.data.config import PrepareCsv, PrepareParquet
from dmsrec_jax.errors import InputError

# s1 … s5 end at 12, 21, 33, 41, 51. Item z is rare; s4's click on it goes, which leaves s4 with one.
LOG = """\
session_id,item_id,timestamp,note
s1,a,11,"x, y"
s1,b,10,
s2,b,20,
s2,a,21,
s1,c,12,
s3,c,33,"two
lines"
s3,b,31,
s4,z,40,
s4,a,41,
s5,c,50,
s5,a,51,
"""


def config(tmp_path, text=LOG, **options):
    path = tmp_path / "log.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    options = {"min_item_count": 2, "test_fraction": 0.25} | options
    return PrepareCsv(out=tmp_path / "out", raw=path, **options)


def rows(sessions):
    return [sessions[i].tolist() for i in range(len(sessions))]


def test_by_hand(tmp_path):
    prepared = read_log(config(tmp_path))
    assert prepared.item_ids == ["a", "b", "c"]
    assert rows(prepared.sessions) == [[2, 1, 3], [2, 1], [2, 3]]
    assert rows(prepared.train) == [[2, 1], [2], [2]]
    assert prepared.train.targets.tolist() == [3, 1, 3]
    assert prepared.train.chains.tolist() == [0, 1, 2]
    assert rows(prepared.test) == [[3]]
    assert prepared.test.targets.tolist() == [1]
    assert prepared.notes == (
        "log.csv: 1 lines begin inside of quotes, the first is line 8; "
        "--no-quotes if a quote is a character like any other",
        "clicks of 1970-01-01T00:00:10 to 1970-01-01T00:00:51 UTC",
        "11 clicks on 4 items read; 2 clicks dropped with items of fewer than 2 clicks and 1 sessions of fewer than 2",
        "0 test clicks on items unseen in training dropped, then 0 test sessions of fewer than 2",
    )


def test_ids_that_differ_in_their_last_character_alone_keep_their_clicks(tmp_path):
    prepared = read_log(config(tmp_path, LOG.replace(",a,", ",a\0,").replace(",b,", ",a,")))
    assert prepared.item_ids == ["a", "a\0", "c"]
    assert rows(prepared.sessions) == [[1, 2, 3], [1, 2], [1, 3]]


def test_options(tmp_path):
    assert rows(read_log(config(tmp_path, augment_prefixes=True)).train) == [[2], [2, 1], [2], [2]]
    longer = read_log(config(tmp_path, min_session_len=3, min_item_count=1, test_fraction=0.5, text=LOG + LONGER))
    assert rows(longer.sessions) == [[2, 1, 3]]
    seconds = 20 / 86_400
    by_days = read_log(config(tmp_path, test_fraction=None, test_days=seconds))  # after 51 - 20 = 31: s3 and s5
    assert rows(by_days.sessions) == [[2, 1, 3], [2, 1]]
    assert len(by_days.test) == 2


LONGER = "s6,a,60,\ns6,b,61,\ns6,c,62,\ns6,q,63,\n"


def test_unseen_test_items_go(tmp_path):
    prepared = read_log(config(tmp_path, text=LOG + LONGER, min_item_count=1, test_fraction=0.15))
    assert rows(prepared.test) == [[1, 2]]
    assert prepared.test.targets.tolist() == [3]
    assert "1 test clicks on items unseen" in prepared.notes[-1]


def test_titles(tmp_path):
    (tmp_path / "titles.csv").write_text('item_id,title\na,"Tent, small"\nc,Stove\nz,Rare\n')
    assert read_log(config(tmp_path, titles=tmp_path / "titles.csv")).titles == ["Tent, small", "", "Stove"]
    (tmp_path / "titles.csv").write_text("item_id,name\na,Tent\n")
    with pytest.raises(InputError, match=r"titles\.csv: no column 'title'; it has 'item_id', 'name'"):
        read_log(config(tmp_path, titles=tmp_path / "titles.csv"))


def test_titles_are_stripped_and_counted(tmp_path):
    (tmp_path / "titles.csv").write_text('\ufeffitem_id,title\n c , 3" pipe \n\nb, \nb,"two\nlines"\nb,Later\na\n')
    prepared = read_log(config(tmp_path, titles=tmp_path / "titles.csv"))
    assert prepared.titles == ["", "two\nlines", '3" pipe']
    assert prepared.notes[-1] == "1 of 3 items have no title"


BAD_TITLES = {  # added as the third data row, after one of two lines: an editor's line 5
    b"c,Title, 0": "more fields",
    b"c,Title,": "more fields",
    b"c,Caf\xe9": "not UTF-8",
}


@pytest.mark.parametrize("row", BAD_TITLES)
def test_bad_rows_of_titles_are_named_or_counted(tmp_path, row):
    path = tmp_path / "titles.csv"
    path.write_bytes(b'item_id,title\na,"Tent,\nsmall"\nb,Stove\n' + row + b"\nc,Mug\n")
    with pytest.raises(InputError, match=rf"titles\.csv: line 5: {BAD_TITLES[row]}"):
        read_log(config(tmp_path, titles=path))
    prepared = read_log(config(tmp_path, titles=path, skip_bad_rows=True))
    assert prepared.titles == ["Tent,\nsmall", "Stove", "Mug"]
    assert prepared.notes[0].startswith(f"titles.csv: bad rows skipped: 1, the first in line 5: {BAD_TITLES[row]}")


@pytest.mark.parametrize("row", ['b,"Stove', 'b,"3" pipe"'])
def test_an_open_quote_in_titles_is_named(tmp_path, row):
    (tmp_path / "titles.csv").write_text(f'item_id,title\na,"Tent,\nsmall"\n{row}\nc,Mug\n')
    with pytest.raises(InputError, match=r"titles\.csv: line 4: a quote"):
        read_log(config(tmp_path, titles=tmp_path / "titles.csv", skip_bad_rows=True))


def test_other_columns_and_separator(tmp_path):
    text = "t;thing;visit\n" + "".join(f"{t};{i};{s}\n" for s, i, t, _ in PLAIN)
    prepared = read_log(config(tmp_path, text, separator=";", session_col="visit", item_col="thing", time_col="t"))
    assert rows(prepared.sessions) == [[2, 1, 3], [2, 1], [2, 3]]


PLAIN = [line.split(",") for line in LOG.replace('"two\nlines"', "").replace('"x, y"', "").splitlines()[1:]]
BASE = 1_600_000_000


@pytest.mark.parametrize(
    "form",
    [
        lambda s: f"{s}000",
        lambda s: f"{s}.5",
        lambda s: f" {s} ",
        lambda s: datetime.fromtimestamp(s, UTC).isoformat(),
        lambda s: datetime.fromtimestamp(s, UTC).strftime("%Y-%m-%dT%H:%M:%S.25Z"),
        lambda s: datetime.fromtimestamp(s, UTC).strftime("%Y-%m-%d %H:%M:%S"),
        lambda s: datetime.fromtimestamp(s + 7200, UTC).strftime("%Y-%m-%d %H:%M:%S+0200"),
        lambda s: datetime.fromtimestamp(s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        lambda s: datetime.fromtimestamp(s * 60, UTC).strftime("%Y-%m-%d %H:%M"),
        lambda s: datetime.fromtimestamp(s * 60, UTC).strftime("%Y-%m-%dT%H:%MZ"),
        lambda s: datetime.fromtimestamp(s * 86_400 - BASE * 86_400, UTC).strftime("%Y-%m-%d"),
        lambda s: datetime.fromtimestamp(s * 86_400 - BASE * 86_400, UTC).strftime("%Y%m%d"),
        lambda s: datetime.fromtimestamp(s, UTC).strftime("%Y%m%d%H%M%S"),
    ],
)
def test_time_forms(tmp_path, form):
    text = "session_id,item_id,timestamp\n" + "".join(f"{s},{i},{form(BASE + int(t))}\n" for s, i, t, _ in PLAIN)
    assert rows(read_log(config(tmp_path, text)).sessions) == [[2, 1, 3], [2, 1], [2, 3]]


@pytest.mark.parametrize("form", ["%Y%m%d", "%Y%m%d%H%M%S"])
@pytest.mark.parametrize("kind", [pl.String, pl.Int64, pl.Float64])
def test_compact_dates_are_no_numbers(tmp_path, form, kind):
    days = [datetime(2014, month, 1 + month, tzinfo=UTC) for month in range(1, 13)]
    times = pl.Series([day.strftime(form) for day in days]).cast(pl.Int64).cast(kind)
    columns = {"session_id": [n // 2 for n in range(12)], "item_id": ["a", "b"] * 6, "timestamp": times}
    pl.DataFrame(columns).write_parquet(tmp_path / "log.parquet")
    prepared = read_log(PrepareParquet(out=tmp_path / "out", raw=tmp_path / "log.parquet"))
    assert prepared.notes[0] == "clicks of 2014-01-02T00:00:00 to 2014-12-13T00:00:00 UTC"


@pytest.mark.parametrize("time", ["31-12-13 10:00:00", "31-12-13", "20141301", "2014-13-01"])
def test_what_is_no_date_among_dates_is_named(tmp_path, time):
    text = "session_id,item_id,timestamp\ns,a,2013-12-31 10:00:00\ns,b,2013-12-31T10:01Z\n"
    with pytest.raises(InputError, match=r"log\.csv: line 4: no time"):
        read_log(config(tmp_path, f"{text}s,a,{time}\n"))


def test_parquet_of_any_type(tmp_path):
    session = [int(s[1:]) for s, *_ in PLAIN]
    item = [i for _, i, *_ in PLAIN]
    seconds = [BASE + int(t) for _, _, t, _ in PLAIN]
    times = {
        "int": pl.Series(seconds),
        "float": pl.Series(seconds, dtype=pl.Float64),
        "text": pl.Series(map(str, seconds)),
        "dictionary": pl.Series(map(str, seconds)).cast(pl.Categorical),
        "bytes": pl.Series(map(str, seconds)).cast(pl.Binary),
        "us": pl.from_epoch(pl.Series(seconds), "s").cast(pl.Datetime("us", "Europe/Berlin")),
        "ns": pl.from_epoch(pl.Series(seconds), "s").cast(pl.Datetime("ns")),
    }
    for name, time in times.items():
        path = tmp_path / f"{name}.parquet"
        pl.DataFrame(
            {"session_id": session, "item_id": pl.Series(item).cast(pl.Categorical), "timestamp": time}
        ).write_parquet(path)
        prepared = read_log(PrepareParquet(out=tmp_path / "out", raw=path, min_item_count=2, test_fraction=0.25))
        assert rows(prepared.sessions) == [[2, 1, 3], [2, 1], [2, 3]], name


@pytest.mark.parametrize("kind", [pl.Time, pl.Duration("us")])
def test_a_time_without_a_date_is_refused(tmp_path, kind):
    path = tmp_path / "log.parquet"
    columns = {"session_id": ["s", "s"], "item_id": ["a", "b"], "timestamp": pl.Series([1, 2]).cast(kind)}
    pl.DataFrame(columns).write_parquet(path)
    with pytest.raises(InputError, match=r"log\.parquet: column 'timestamp' \(--time-col\) holds"):
        read_log(PrepareParquet(out=tmp_path / "out", raw=path))


def test_a_column_called_row(tmp_path):
    assert rows(read_log(config(tmp_path, LOG.replace("note", "row"))).sessions) == [[2, 1, 3], [2, 1], [2, 3]]


def test_not_a_number_is_no_id(tmp_path):
    path = tmp_path / "log.parquet"
    columns = {"session_id": [1.0, 1.0, float("nan")], "item_id": [1.0, float("nan"), 1.0], "timestamp": [1, 2, 3]}
    pl.DataFrame(columns).write_parquet(path)
    with pytest.raises(InputError, match=r"log\.parquet: row 2: no item"):
        read_log(PrepareParquet(out=tmp_path / "out", raw=path))
    pl.DataFrame(columns | {"item_id": [1.0, 1.0, 1.0]}).write_parquet(path)
    with pytest.raises(InputError, match=r"log\.parquet: row 3: no session"):
        read_log(PrepareParquet(out=tmp_path / "out", raw=path))


def test_whole_floats_are_integer_ids(tmp_path):
    """A column of integers with a gap comes as floats; the titles' file has the integers."""
    path, titles = tmp_path / "log.parquet", tmp_path / "items.csv"
    ids = [7.0, 8.0, 8.0, 2.5, 7.0, 8.0, 7.0, 8.0]
    columns = {"session_id": [1.0, 1, 2, 2, 3, 3, 4, 4], "item_id": ids, "timestamp": range(1, 9)}
    pl.DataFrame(columns).write_parquet(path)
    titles.write_text("item_id,title\n7,Tent\n8,Stove\n2.5,Half\n")
    prepared = read_log(PrepareParquet(out=tmp_path / "out", raw=path, titles=titles, min_item_count=1))
    assert dict(zip(prepared.item_ids, prepared.titles, strict=True)) == {"7": "Tent", "8": "Stove", "2.5": "Half"}


BAD = {  # added as the log's second data row: an editor's line 3
    "s9,a": "no time",
    "s9,,5": "no item",
    ",a,5": "no session",
    "  ,a,5": "no session",
    "s9,a,": "no time",
    "s9,a,soon": "no time",
    "s9,a,nan": "no time",
    "s9,a,inf": "no time",
    "s9,a,1e15": "a time out of range: seconds below 1e11 or milliseconds",
    "s9,a,-1700000000000000": "a time out of range",
    "s9,a,1700000000000000000": "a time out of range",
    "s9,a,2020-01-01": "no time",
    "s9,a,5,x,y": "more fields",
    "s9,a,5,x,": "more fields",
    "s9,a,5,,": "more fields",
    "s9,a,5,,,y": "more fields",
    's9,a,5,"x\ny",': "more fields",
    ",,,,": "more fields",
    "s1,c,11,": "the session has an earlier row of the same time",
}


@pytest.mark.parametrize("row", BAD)
def test_bad_rows_are_named_or_counted(tmp_path, row):
    lines = LOG.splitlines()
    text = "\n".join([*lines[:2], row, *lines[2:]]) + "\n"
    with pytest.raises(InputError, match=rf"log\.csv: line 3: {BAD[row]}"):
        read_log(config(tmp_path, text))
    prepared = read_log(config(tmp_path, text, skip_bad_rows=True))
    assert prepared.notes[0].startswith(f"log.csv: bad rows skipped: 1, the first in line 3: {BAD[row]}")
    assert rows(prepared.sessions) == [[2, 1, 3], [2, 1], [2, 3]]


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_an_empty_extra_field_in_a_file_without_quotes(tmp_path, monkeypatch, end):
    """Whatever blocks the file is read in, and with the last line unended."""
    lines = ["session_id,item_id,timestamp", *(",".join(fields[:3]) for fields in PLAIN), "s5,b,60,"]
    text = (end or "\n").join(lines) + end
    for size in (1, 7, 1 << 22):
        monkeypatch.setattr("dmsrec_jax.data.delimited._BLOCK", size)
        with pytest.raises(InputError, match=r"log\.csv: line 13: more fields"):
            read_log(config(tmp_path, text))
        assert rows(read_log(config(tmp_path, text, skip_bad_rows=True)).sessions) == [[2, 1, 3], [2, 1], [2, 3]]


def test_line_numbers_count_lines_inside_quotes(tmp_path):
    with pytest.raises(InputError, match=r"log\.csv: line 14: no item"):
        read_log(config(tmp_path, LOG + "s5,,60,\n"))


def test_bytes_that_are_no_text(tmp_path):
    text = LOG.encode() + b"s5,\xff,60,\n"
    with pytest.raises(InputError, match=r"log\.csv: line 14: an id that is not UTF-8"):
        read_log(config(tmp_path, text))
    assert len(read_log(config(tmp_path, text, skip_bad_rows=True)).train) == 3


@pytest.mark.parametrize("field", ['"a', '5" pipe', '"5" pipe"', '2 "3" 4"'])
def test_a_quote_that_is_open_or_stray_is_named(tmp_path, field):
    with pytest.raises(InputError, match=r"log\.csv: line 14: a quote"):
        read_log(config(tmp_path, LOG + f's5,{field},60,\ns5,"b",61,"two\nlines"\n', skip_bad_rows=True))


def test_quotes_that_swallow_lines(tmp_path):
    """Two quotes lines apart make one field of all between, which nobody but the file's owner can tell is wrong."""
    text = LOG.replace('"x, y"', "").replace('"two\nlines"', "") + 's5,b,60,"1 \ns6,a,70,\ns6,b,71,2"\ns6,c,72,\n'
    swallowed = read_log(config(tmp_path, text))
    assert "2 lines begin inside of quotes, the first is line 14; --no-quotes" in swallowed.notes[0]
    literal = read_log(config(tmp_path, text, quotes=False))
    assert "13 clicks" in swallowed.notes[-2]
    assert "15 clicks" in literal.notes[-2]
    assert not any("inside of quotes" in note for note in literal.notes)


def test_a_field_longer_than_the_csv_module_reads_by_default(tmp_path):
    text = LOG + 's5,b,60,"1 \n' + "s6,a,70,\n" * 20_000 + 's6,b,71,2"\n'
    (tmp_path / "titles.csv").write_text(f"item_id,title,note\na,Tent,{'x' * 150_000}\n")
    assert any("20,002 lines begin inside" in n for n in read_log(config(tmp_path, text)).notes)
    assert read_log(config(tmp_path, titles=tmp_path / "titles.csv")).titles == ["Tent", "", ""]


def test_quotes_that_two_readers_read_differently(tmp_path):
    lines = LOG.replace('"x, y"', "").replace('"two\nlines"', "").splitlines()
    for at, quotes in ((2, '"x'), (5, ' "x"'), (9, '"""')):
        lines[at] += quotes
    with pytest.raises(InputError, match=r"log\.csv: line \d+: a quote"):
        read_log(config(tmp_path, "\n".join(lines) + "\n"))


def test_a_pipe_and_a_compressed_file_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for kind in (PrepareCsv, PrepareParquet):
        with pytest.raises(InputError, match=r"pipe: not a regular file"):
            read_log(kind(out=tmp_path / "out", raw=tmp_path / "pipe"))
    with pytest.raises(InputError, match=r"log\.csv: line 1: .* compressed: unpack it first"):
        read_log(config(tmp_path, gzip.compress(LOG.encode())))


@pytest.mark.parametrize(
    "form",
    [
        "\ufeff" + LOG,
        LOG.replace("\n", "\r\n"),
        LOG + "\n\n",
        LOG.rstrip("\n"),
        LOG.replace("s1,b", " s1,b ").replace("s3,c", 's3,"\u00a0c\t"'),
    ],
)
def test_harmless_forms(tmp_path, form):
    assert rows(read_log(config(tmp_path, form)).sessions) == [[2, 1, 3], [2, 1], [2, 3]]


def test_batches_make_no_difference(tmp_path, monkeypatch):
    rng = np.random.Generator(np.random.PCG64(0))
    lines = [f"s{s},i{i},{t}" for t, (s, i) in enumerate(rng.integers(0, 300, (4000, 2)))]
    text = "session_id,item_id,timestamp\n" + "\n".join(lines) + "\n"
    whole = read_log(config(tmp_path, text))
    monkeypatch.setattr("dmsrec_jax.data.clicklog._BATCH", 97)
    parts = read_log(config(tmp_path, text))
    assert parts.item_ids == whole.item_ids
    for name in ("items", "offsets", "targets", "chains"):
        assert np.array_equal(getattr(parts.train, name), getattr(whole.train, name))
        assert np.array_equal(getattr(parts.test, name), getattr(whole.test, name))
    # Against a plain loop.
    sessions = {}
    for line in lines:
        session, item, _ = line.split(",")
        sessions.setdefault(session, []).append(item)
    last = {line.split(",")[0]: t for t, line in enumerate(lines)}
    expected = [sessions[s] for s in sorted(sessions, key=last.get) if len(sessions[s]) > 1][: len(whole.sessions)]
    assert [[whole.item_ids[i - 1] for i in row] for row in rows(whole.sessions)] == expected
