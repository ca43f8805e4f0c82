"""``python -m dmsrec_jax.prepare SOURCE --out DIR``: a click log in, a dataset folder and its Table 1 row out."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from dmsrec_jax import cli
from dmsrec_jax.data import demo
from dmsrec_jax.data.amazon import read_amazon
from dmsrec_jax.data.clicklog import read_log
from dmsrec_jax.data.config import (
    Prepare,
    PrepareAmazon,
    PrepareCsv,
    PrepareDemo,
    PrepareLog,
    PrepareMovieLens,
    PrepareNpz,
    PrepareParquet,
    PreparePickle,
)
from dmsrec_jax.data.movielens import read_movielens
from dmsrec_jax.data.npz import read_npz
from dmsrec_jax.data.srgnn_pickle import read_pickles
from dmsrec_jax.data.write import Prepared, keep_last, shorten_titles, table1, write_dataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import check_replaceable

SOURCES = {
    "csv": PrepareCsv,
    "parquet": PrepareParquet,
    "ml-1m": PrepareMovieLens,
    "amazon-2014": PrepareAmazon,
    "npz": PrepareNpz,
    "pickle": PreparePickle,
    "demo": PrepareDemo,
}


def main(argv: Sequence[str] | None = None) -> None:
    """The command; ``argv`` are its arguments, the process's own by default."""
    cli.run(prepare, SOURCES, argv, prog="python -m dmsrec_jax.prepare")


def prepare(config: Prepare) -> None:
    """Reads the source that ``config`` is of, writes the dataset folder and prints its Table 1 row."""
    reads = [path for name in ("raw", "titles") if (path := getattr(config, name, None)) is not None]
    check_replaceable(config.out, marker="sessions_items.npy", overwrite=config.overwrite, reads=reads)
    most = getattr(config, "keep_last", None)
    if most is not None and most < 1:
        raise InputError(f"--keep-last {most}: must be 1 or more")
    prepared, provenance = _read(config)
    prepared = shorten_titles(prepared if most is None else keep_last(prepared, most))
    name = config.name or config.out.resolve().name
    dataset = write_dataset(prepared, config.out, name=name, provenance=provenance, overwrite=config.overwrite)
    console = Console(markup=False, highlight=False)
    console.print(table1(dataset))
    for note in prepared.notes:
        console.print(note, soft_wrap=True)
    console.print(f"{config.out}: hash {dataset.hash[:12]}", soft_wrap=True)


def _read(config: Prepare) -> tuple[Prepared, dict[str, Any]]:
    match config:
        case PrepareDemo():
            return demo.prepare_demo(config.seed), demo.provenance(config.seed)
        case PrepareLog():
            return read_log(config), _provenance(config)
        case PrepareMovieLens():
            return read_movielens(config), _provenance(config)
        case PrepareAmazon():
            return read_amazon(config), _provenance(config)
        case PrepareNpz():
            return read_npz(config), _provenance(config)
        case PreparePickle():
            return read_pickles(config.raw), _provenance(config)
    raise TypeError(f"no source for {type(config).__name__}")


def _provenance(config: Prepare) -> dict[str, Any]:
    """The source and its settings; paths by name alone, so that the same input gives the same folder anywhere."""
    source = next(name for name, kind in SOURCES.items() if isinstance(config, kind))
    settings = dataclasses.asdict(config)
    for unrelated in ("out", "name", "overwrite"):
        del settings[unrelated]
    return {"source": source} | {key: v.name if isinstance(v, Path) else v for key, v in settings.items()}


if __name__ == "__main__":
    main()
