"""From a full store of answers to the intents folder and its report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from dmsrec_jax.artifacts import Intents, SessionIntents, write_intents
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import staged_files, write_json
from llm_stage.config import IntentsConfig
from llm_stage.encoder import encoder_revision, load_encoder, stored
from llm_stage.intents import classify, gather, part_of, spread
from llm_stage.questions import RowSpace
from llm_stage.report import print_report, summarise, write_figure
from llm_stage.store import AnswerStore, differing, read_object


def choices(config: IntentsConfig, revision: str) -> dict[str, str]:
    """What of the settings, and of the encoder's revision, shapes the intents, but not the answers."""
    return {
        "encoder": Path(config.encoder).name if Path(config.encoder).is_dir() else config.encoder,
        "encoder_revision": revision,
        "pooling": config.pooling,
        "embedding_dtype": config.embedding_dtype,
        "explicit_rule": config.explicit_rule,
    }


def is_finished(out: Path, config: IntentsConfig, identity: Mapping[str, Any]) -> bool:
    """Whether ``out`` holds the intents of this very run.

    Raises:
      InputError: it holds those of other answers, or of the same by another encoder or rule, without --overwrite, or
        its meta.json is foreign.
    """
    if not (out / "meta.json").is_file():
        return False
    made = read_object(out / "meta.json").get("provenance")
    if not isinstance(made, dict):
        raise InputError(f"{out / 'meta.json'}: a provenance is due")
    here = {"answers": dict(identity), **choices(config, encoder_revision(config.encoder))}
    there = {key: made.get(key) for key in here}
    if differences := differing(there, here):
        key, old, new = differences[0]
        of_other_answers = key.startswith("answers")
        if config.overwrite and not of_other_answers:
            return False
        hint = "" if of_other_answers else ", or --overwrite to make them anew from these answers"
        raise InputError(f"{out}: finished with {key} {old}, not {new}; give another --out{hint}")
    return True


def finish(
    store: AnswerStore,
    out: Path,
    config: IntentsConfig,
    identity: Mapping[str, Any],
    label: str,
    dataset: SessionDataset,
    space: RowSpace,
    console: Console,
    pace: Mapping[str, float] | None = None,
) -> None:
    """Classifies and encodes what was named, then writes the report and, its meta.json last, the intents.

    Args:
      store: the answer of every question.
      out: where to.
      config: how.
      identity: of the answers.
      label: the engine's.
      dataset: whose sessions they are.
      space: its rows.
      console: printed to.
      pace: what the last process measured, for the report.
    """
    answers = gather(store)
    picks = spread(answers.picks, np.searchsorted(answers.rows, space.asked_by))
    named = classify(picks, space, dataset.titles_or_empty, config.explicit_rule)
    if not len(named.titles):
        raise InputError(f"{out}: no answer names an item with a title, so there is no intent; see {store.folder}")
    encoder = load_encoder(config.encoder, config.pooling)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("intents encoded", total=len(named.titles))
        vectors = encoder.encode(named.titles.tolist(), lambda n: bar.advance(task, n))
    embeddings = stored(vectors, config.embedding_dtype, encoder)
    report = summarise(answers, named, picks, space, label) | {"encoded": encoder.encoded, "pace": dict(pace or {})}
    with staged_files(out, last="report.json") as staged:
        write_json(staged / "report.json", report)
        write_figure(staged / "intents.png", report, dataset.name)
    parts = {
        part: SessionIntents(
            part_of(named.explicit, start, stop), part_of(named.latent, start, stop), space.candidates[start:stop]
        )
        for part, start, stop in (("train", 0, space.n_train), ("test", space.n_train, len(space.targets)))
    }
    provenance = {"engine_label": label, "answers": dict(identity), **choices(config, encoder.revision)}
    write_intents(out, Intents(named.titles, embeddings, **parts), dataset, provenance, overwrite=config.overwrite)
    print_report(report, console)
    console.print(f"intents: {out}", soft_wrap=True)
