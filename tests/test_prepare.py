"""The command: every source, and a corpus of broken inputs that each give one line and exit code 2."""

import gzip
import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import polars as pl
import pytest

from dmsrec_jax.data import SessionDataset
from dmsrec_jax.prepare import main

LOG = "session_id,item_id,timestamp\n" + "".join(
    f"s{s},i{(s + k) % 4},{10 * s + k}\n" for s in range(20) for k in range(3)
)


def npz(**changes):
    arrays = {
        "all_items": [1, 2, 3, 4],
        "all_offsets": [0, 2, 4],
        "train_items": [1, 3],
        "train_offsets": [0, 1, 2],
        "train_targets": [2, 4],
        "test_items": [2],
        "test_offsets": [0, 1],
        "test_targets": [1],
    }
    return {k: np.array(v) for k, v in (arrays | changes).items() if v is not None}


def make(folder, source, **files):
    """Writes good raw files of ``source``, then ``files`` (None: removed) over them; the value of --raw."""
    folder.mkdir()
    good = {
        "csv": {"log.csv": LOG},
        "parquet": {"log.parquet": pl.read_csv(LOG.encode())},
        "ml-1m": {
            "ratings.dat": "".join(f"{u}::{1 + k}::5::{86_400 * u + k}\n" for u in range(1, 11) for k in range(3)),
            "movies.dat": "1::A (1990)::X\n2::B (1991)::X\n3::C (1992)::X\n",
        },
        "amazon-2014": {
            "reviews_X_5.json.gz": gz(
                *({"reviewerID": f"u{u}", "asin": f"B{k}", "unixReviewTime": k} for u in range(10) for k in range(3))
            ),
            "meta_X.json.gz": gz({"asin": "B1", "title": "One"}),
        },
        "npz": {"sessions.npz": npz(), "titles.json": json.dumps({str(i): f"T{i}" for i in range(1, 5)})},
        "pickle": {"train.txt": pickle.dumps(([[1], [3]], [2, 4])), "test.txt": pickle.dumps(([[1]], [2]))},
        "demo": {},
    }[source]
    for name, content in (good | {k.replace("__", "."): v for k, v in files.items()}).items():
        path = folder / name
        match content:
            case None:
                path.unlink(missing_ok=True)
            case str():
                path.write_text(content)
            case bytes():
                path.write_bytes(content)
            case dict():
                np.savez(path, **content)
            case pl.DataFrame():
                content.write_parquet(path)
    return folder / next(iter(good), "") if source in ("csv", "parquet") else folder


def gz(*records):
    return gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode())


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def cut(content, share=0.5):
    return content[: int(len(content) * share)]


def npz_bytes(**changes):
    buffer = io.BytesIO()
    np.savez(buffer, **npz(**changes))
    return buffer.getvalue()


def parquet_bytes():
    buffer = io.BytesIO()
    pl.read_csv(LOG.encode()).write_parquet(buffer)
    return buffer.getvalue()


PARQUET = parquet_bytes()
JUNK = bytes(range(256)) * 8

# source, raw files over good ones (log__csv stands for log.csv), flags, words the one line must hold
BROKEN = {
    "csv missing": ("csv", {"log__csv": None}, [], "log.csv: No such file"),
    "csv empty": ("csv", {"log__csv": b""}, [], "log.csv: line 1"),
    "csv header only": ("csv", {"log__csv": LOG[:29]}, [], "no click"),
    "csv no column": ("csv", {}, ["--time-col", "when"], "no column 'when'"),
    "csv twice a column": ("csv", {"log__csv": "item_id,item_id\n1,2\n"}, [], "line 1: column 'item_id' appears twice"),
    "csv binary": ("csv", {"log__csv": JUNK}, [], "log.csv: no column"),
    "csv gzipped": ("csv", {"log__csv": gzip.compress(LOG.encode())}, [], "log.csv: line 1"),
    "csv zeros": ("csv", {"log__csv": bytes(1000)}, [], "log.csv: "),
    "csv time": ("csv", {"log__csv": LOG + "s,i1,noon\n"}, [], "line 62: no time"),
    "csv item": ("csv", {"log__csv": LOG + "s,,5\n"}, [], "line 62: no item"),
    "csv session": ("csv", {"log__csv": LOG + ",i1,5\n"}, [], "line 62: no session"),
    "csv short row": ("csv", {"log__csv": LOG + "s,i1\n"}, [], "line 62: no time"),
    "csv long row": ("csv", {"log__csv": LOG + "s,i1,5,6\n"}, [], "line 62: more fields"),
    "csv duplicate": ("csv", {"log__csv": LOG + "s1,i1,11\n"}, [], "line 62: the session has an earlier row"),
    "csv open quote": ("csv", {"log__csv": LOG + 's,"i1,5\n'}, [], "line 62: a quote"),
    "csv cut in a row": ("csv", {"log__csv": LOG[:-6]}, [], "line 61: no time"),
    "csv nothing left": ("csv", {}, ["--min-item-count", "99"], "no session is left"),
    "csv no training": ("csv", {}, ["--test-fraction", "0.99"], "the split leaves 0"),
    "csv no train": ("csv", {}, ["--test-days", "9"], "the split leaves 0"),
    "csv both splits": ("csv", {}, ["--test-days", "9", "--test-fraction", "0.1"], "give one of them"),
    "csv fraction": ("csv", {}, ["--test-fraction", "1.5"], "--test-fraction 1.5"),
    "csv fraction nan": ("csv", {}, ["--test-fraction", "nan"], "--test-fraction nan"),
    "csv days": ("csv", {}, ["--test-days", "nan"], "--test-days nan"),
    "csv count": ("csv", {}, ["--min-item-count", "0"], "--min-item-count 0"),
    "csv length": ("csv", {}, ["--min-session-len", "x"], "--min-session-len"),
    "csv separator": ("csv", {}, ["--separator", "ab"], "--separator 'ab'"),
    "csv titles missing": ("csv", {}, ["--titles", "nowhere.csv"], "nowhere.csv: No such file"),
    "csv is a folder": ("csv", {}, ["--raw", "."], ".: Is a directory"),
    "flag unknown": ("csv", {}, ["--unknown"], "--unknown"),
    "parquet missing": ("parquet", {"log__parquet": None}, [], "log.parquet: "),
    "parquet is a folder": ("parquet", {}, ["--raw", "."], ".: Is a directory"),
    "parquet empty": ("parquet", {"log__parquet": b""}, [], "log.parquet: "),
    "parquet foreign": ("parquet", {"log__parquet": LOG}, [], "log.parquet: "),
    "parquet cut": ("parquet", {"log__parquet": cut(PARQUET)}, [], "log.parquet: "),
    "parquet overwritten": ("parquet", {"log__parquet": PARQUET[:4] + bytes(60) + PARQUET[64:]}, [], "log.parquet: "),
    "parquet bad footer": ("parquet", {"log__parquet": PARQUET[:-60] + JUNK[:52] + PARQUET[-8:]}, [], "log.parquet: "),
    "parquet column": ("parquet", {}, ["--item-col", "x"], "no column 'x'"),
    "parquet lists": (
        "parquet",
        {"log__parquet": pl.DataFrame({"session_id": [[1]], "item_id": [1], "timestamp": [1]})},
        [],
        "log.parquet: ",
    ),
    "parquet booleans": (
        "parquet",
        {"log__parquet": pl.DataFrame({"session_id": [1], "item_id": [1], "timestamp": [b"x"]})},
        [],
        "log.parquet: ",
    ),
    "parquet null": (
        "parquet",
        {"log__parquet": pl.DataFrame({"session_id": [1, None], "item_id": [1, 2], "timestamp": [1, 2]})},
        [],
        "row 2: no session",
    ),
    "ml-1m missing": ("ml-1m", {"ratings__dat": None}, [], "ratings.dat: "),
    "ml-1m no movies": ("ml-1m", {"movies__dat": None}, [], "movies.dat: No such file"),
    "ml-1m empty": ("ml-1m", {"ratings__dat": b""}, [], "ratings.dat: "),
    "ml-1m row": ("ml-1m", {"ratings__dat": "1::2::3::4\n1,2,3,4\n"}, [], "ratings.dat: line 2"),
    "ml-1m movie row": ("ml-1m", {"movies__dat": "1::A\n"}, [], "movies.dat: line 1"),
    "ml-1m binary": ("ml-1m", {"ratings__dat": JUNK}, [], "ratings.dat: line 1"),
    "ml-1m too few": ("ml-1m", {"ratings__dat": "1::2::3::4\n"}, [], "too few"),
    "amazon missing": ("amazon-2014", {"meta_X__json__gz": None}, [], "one meta_*.json.gz is due, 0 found"),
    "amazon no folder": ("amazon-2014", {}, ["--raw", "README.md"], "README.md: Not a directory"),
    "amazon plain": ("amazon-2014", {"reviews_X_5__json__gz": "{}\n"}, [], "reviews_X_5.json.gz: "),
    "amazon cut": ("amazon-2014", {"reviews_X_5__json__gz": cut(gz({"a": 1}), 0.7)}, [], "reviews_X_5.json.gz: "),
    "amazon empty": ("amazon-2014", {"reviews_X_5__json__gz": gz()}, [], "no review"),
    "amazon zero bytes": ("amazon-2014", {"reviews_X_5__json__gz": b""}, [], "no review"),
    "amazon fields": ("amazon-2014", {"reviews_X_5__json__gz": gz({"asin": "B"})}, [], "line 1: reviewerID"),
    "amazon list": ("amazon-2014", {"meta_X__json__gz": gz([1])}, [], "meta_X.json.gz: line 1"),
    "amazon call": (
        "amazon-2014",
        {"meta_X__json__gz": gzip.compress(b"__import__('os').abort()\n")},
        [],
        "meta_X.json.gz: line 1",
    ),
    "npz missing": ("npz", {"sessions__npz": None}, [], "sessions.npz: No such file"),
    "npz empty": ("npz", {"sessions__npz": b""}, [], "sessions.npz: "),
    "npz cut": ("npz", {"sessions__npz": cut(npz_bytes())}, [], "sessions.npz: "),
    "npz foreign": ("npz", {"sessions__npz": JUNK}, [], "sessions.npz: "),
    "npz flipped": ("npz", {"sessions__npz": npz_bytes().replace(b"NUMPY", b"NUMPX")}, [], "sessions.npz: "),
    "npz other zip": ("npz", {"sessions__npz": zipped(a=b"b")}, [], "no array 'train_items'"),
    "npz no array": ("npz", {"sessions__npz": npz(all_items=None)}, [], "no array 'all_items'"),
    "npz objects": ("npz", {"sessions__npz": npz(train_items=[{}, 1])}, [], "sessions.npz: "),
    "npz floats": ("npz", {"sessions__npz": npz(train_items=[1.0, 3.0])}, [], "train_items is float64"),
    "npz rank": ("npz", {"sessions__npz": npz(train_items=[[1, 3]])}, [], "train_items is int64 of rank 2"),
    "npz id 0": ("npz", {"sessions__npz": npz(test_items=[0])}, [], "test_items: entry 0 is item 0"),
    "npz id beyond": ("npz", {"sessions__npz": npz(test_targets=[5])}, [], "test_targets: entry 0 is item 5"),
    "npz id absurd": (
        "npz",
        {"sessions__npz": npz(test_targets=[2**40]), "titles__json": None},
        [],
        "test_targets: entry 0 is item 1099511627776",
    ),
    "npz offsets": ("npz", {"sessions__npz": npz(train_offsets=[0, 1, 3])}, [], "train_offsets do not describe"),
    "npz offsets fall": ("npz", {"sessions__npz": npz(all_offsets=[0, 5, 4])}, [], "all_offsets: row 1 has no click"),
    "npz targets": ("npz", {"sessions__npz": npz(train_targets=[2])}, [], "train_targets: 1 rows where 2 are due"),
    "npz no prefix": ("npz", {"sessions__npz": npz(train_targets=[2, 3])}, [], "training row 1 is no prefix"),
    "npz no rows": ("npz", {"sessions__npz": npz(test_items=[], test_offsets=[0], test_targets=[])}, [], "is float64"),
    "npz titles": ("npz", {"titles__json": '{"1": 5}'}, [], "titles.json: item 1"),
    "npz titles cut": ("npz", {"titles__json": '{"1": "a'}, [], "titles.json: not valid JSON"),
    "npz titles of words": ("npz", {"titles__json": '{"one": "a"}'}, [], "titles.json: "),
    "npz titles list": ("npz", {"titles__json": "[]"}, [], "titles.json: "),
    "npz titles binary": ("npz", {"titles__json": JUNK}, [], "titles.json: "),
    "pickle missing": ("pickle", {"test__txt": None}, [], "test.txt: No such file"),
    "pickle empty": ("pickle", {"train__txt": b""}, [], "train.txt: "),
    "pickle cut": ("pickle", {"train__txt": pickle.dumps(([[1]], [2]))[:-5]}, [], "train.txt: "),
    "pickle class": ("pickle", {"train__txt": pickle.dumps(OrderedDict())}, [], "train.txt: byte"),
    "pickle text": ("pickle", {"train__txt": LOG}, [], "train.txt: "),
    "pickle other": ("pickle", {"train__txt": pickle.dumps([1])}, [], "train.txt: a pair"),
    "pickle id": ("pickle", {"train__txt": pickle.dumps(([[0]], [1]))}, [], "train.txt: clicks: entry 0 is item 0"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_input_gives_one_line_and_leaves_nothing(name, tmp_path, capfd):
    source, files, flags, words = BROKEN[name]
    raw = make(tmp_path / "raw", source, **files)
    out = tmp_path / "made" / "data"
    with pytest.raises(SystemExit) as stop:
        main([source, "--raw", str(raw), "--out", str(out), *flags])
    printed = capfd.readouterr()  # of the descriptors: native code writes there
    assert stop.value.code == 2
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith("prepare: error: ")
    assert words in printed.err
    assert not out.exists()
    assert not out.parent.exists() or not list(out.parent.iterdir())


SOURCES = ["csv", "parquet", "ml-1m", "amazon-2014", "npz", "pickle", "demo"]


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_prepares_the_same_folder_twice(source, tmp_path, capsys):
    raw = make(tmp_path / "raw", source)
    flags = [] if source == "demo" else ["--raw", str(raw)]
    hashes = set()
    for name in ("one", "two"):
        main([source, *flags, "--out", str(tmp_path / name), "--name", "mine"])
        dataset = SessionDataset.load(tmp_path / name, verify=True)
        assert dataset.name == "mine"
        assert dataset.meta["provenance"]["source"] == source
        assert all(len(digest) == 64 for digest in dataset.meta["provenance"]["inputs"].values())
        hashes.add((dataset.hash, json.dumps(dataset.meta)))
    assert len(hashes) == 1
    printed = capsys.readouterr().out
    for heading in ("#Train", "#Test", "#Clicks", "#Items", "Avg. len", "mine"):
        assert heading in printed


def test_table_1_counts(tmp_path, capsys):
    main(["npz", "--raw", str(make(tmp_path / "raw", "npz")), "--out", str(tmp_path / "out")])
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[4].strip("│").split("│")]
    assert cells == ["out", "2", "1", "6", "4", "1.00"]


def test_an_existing_folder_is_kept_unless_told(tmp_path, capsys):
    out = tmp_path / "out"
    main(["demo", "--out", str(out)])
    before = SessionDataset.load(out).hash
    with pytest.raises(SystemExit):
        main(["demo", "--out", str(out), "--seed", "1"])
    assert "exists already; give --overwrite" in capsys.readouterr().err
    assert SessionDataset.load(out, verify=True).hash == before
    main(["demo", "--out", str(out), "--seed", "1", "--overwrite"])
    assert SessionDataset.load(out, verify=True).hash != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("flag", ["--raw", "--titles"])
def test_what_is_read_is_not_replaced(tmp_path, refused, flag):
    out, outside = tmp_path / "out", tmp_path / "items.csv"
    raw = make(tmp_path / "raw", "csv")
    outside.write_text("item_id,title\ni1,One\n")
    main(["csv", "--raw", str(raw), "--out", str(out)])
    inside = out / "mine.csv"
    shutil.copy(raw if flag == "--raw" else outside, inside)
    files = {"--raw": raw, "--titles": outside} | {flag: inside}
    flags = [word for pair in files.items() for word in pair]
    assert f"would replace {inside}" in refused(main, "csv", *flags, "--out", out, "--overwrite")
    assert inside.is_file()


@pytest.mark.parametrize("source", ["csv", "npz"])
def test_rows_keep_their_last_clicks(source, tmp_path, capsys, refused):
    rows = npz(all_items=[1, 3, 2, 3, 4], all_offsets=[0, 3, 5], train_items=[1, 3, 3], train_offsets=[0, 2, 3])
    raw = make(tmp_path / "raw", source, **({"sessions__npz": rows} if source == "npz" else {}))
    flags = (source, "--raw", str(raw), "--out")
    assert "--keep-last 0" in refused(main, *flags, tmp_path / "out", "--keep-last", 0)
    main([*flags, str(tmp_path / "whole")])
    main([*flags, str(tmp_path / "cut"), "--keep-last", "1"])
    whole, cut = (SessionDataset.load(tmp_path / name, verify=True) for name in ("whole", "cut"))
    for part in ("train", "test"):
        rows, short = getattr(whole, part), getattr(cut, part)
        assert [row.tolist() for row in map(short.__getitem__, range(len(short)))] == [
            rows[i][-1:].tolist() for i in range(len(rows))
        ]
        for name in ("targets", "chains"):
            assert getattr(short, name).tolist() == getattr(rows, name).tolist()
    assert cut.sessions.items.tolist() == whole.sessions.items.tolist()
    assert cut.meta["counts"] == whole.meta["counts"]
    longer = int((whole.train.lengths > 1).sum())
    assert longer
    assert f"rows cut to their last 1 clicks: {longer} training, " in capsys.readouterr().out


def test_long_titles_are_cut(tmp_path, capsys):
    titles = {str(i): "T" * (999 + i) for i in range(1, 5)}
    raw = make(tmp_path / "raw", "npz", titles__json=json.dumps(titles))
    main(["npz", "--raw", str(raw), "--out", str(tmp_path / "out")])
    assert [len(title) for title in SessionDataset.load(tmp_path / "out").titles] == [0, 1000, 1000, 1000, 1000]
    assert "3 titles cut to 1,000 characters" in capsys.readouterr().out


def test_names_in_brackets(tmp_path, capsys):
    main(["npz", "--raw", str(make(tmp_path / "raw", "npz")), "--name", "[/a]", "--out", str(tmp_path / "out")])
    assert "[/a]" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["file", "file/deeper"])
def test_a_file_where_a_folder_is_due(tmp_path, refused, place):
    (tmp_path / "file").touch()
    line = refused(main, "npz", "--raw", make(tmp_path / "raw", "npz"), "--out", tmp_path / place / "data")
    assert f"{tmp_path / 'file'}: exists and is not a folder" in line


def test_a_negative_seed(tmp_path, refused):
    assert "--seed -1: must be 0 or more" in refused(main, "demo", "--seed", -1, "--out", tmp_path / "out")


def test_the_process_itself(tmp_path):
    command = [sys.executable, "-m", "dmsrec_jax.prepare"]
    raw = make(tmp_path / "raw", "csv", log__csv=LOG + "s,i1,noon\n")
    flags = ["csv", "--raw", str(raw), "--out", str(tmp_path / "out")]
    failed = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
    assert f"{raw}: line 62: no time" in failed.stderr
    done = subprocess.run([*command, *flags, "--skip-bad-rows"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "log.csv: bad rows skipped: 1, the first in line 62: no time" in done.stdout
    assert SessionDataset.load(tmp_path / "out", verify=True).n_items == 4


@pytest.mark.parametrize("source", SOURCES)
def test_help_explains_every_flag(source, capsys):
    with pytest.raises(SystemExit) as stop:
        main([source, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "--out" in printed
    assert "Dataset folder to write" in printed
