"""A file of items that are not in the catalogue yet: id and title, a row each."""

import csv
from pathlib import Path

from dmsrec_jax.data import SessionDataset
from dmsrec_jax.data.delimited import Form, header
from dmsrec_jax.errors import InputError


def read_new_items_csv(path: Path, dataset: SessionDataset) -> tuple[list[str], list[str]]:
    """Ids and titles of a CSV file with the columns id and title; other columns are passed over.

    Raises:
      InputError: the file is missing or foreign, or a row has no id, no title, too many fields, or an id that is taken.
    """
    ids: list[str] = []
    titles: list[str] = []
    taken = set(dataset.item_ids)
    missing = {"id", "title"} - set(header(path, Form()))
    if missing:
        raise InputError(f"{path}: no column {sorted(missing)[0]!r}; id and title are due")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                item, title = ((row[name] or "").strip() for name in ("id", "title"))
                line = f"{path}: line {reader.line_num}"
                if None in row:
                    raise InputError(f"{line}: more fields than the header has")
                if not item or not title:
                    raise InputError(f"{line}: no {'title' if item else 'id'}")
                if item in taken:
                    known = "the catalogue has this item" if item in dataset.item_ids else "an earlier line has this id"
                    raise InputError(f"{line}: id {item!r}: {known}")
                taken.add(item)
                ids.append(item)
                titles.append(title)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file in UTF-8: {error}") from None
    if not ids:
        raise InputError(f"{path}: no item in it")
    return ids, titles
