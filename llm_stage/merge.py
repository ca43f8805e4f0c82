"""``python -m llm_stage.merge``: the answers of all shards in one folder, and their intents."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from dmsrec_jax import cli
from dmsrec_jax.artifacts import read_candidates
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from llm_stage.config import MergeConfig
from llm_stage.encoder import check_encoder
from llm_stage.engines.base import Answer
from llm_stage.finish import finish, is_finished
from llm_stage.questions import data_identity, row_space
from llm_stage.report import check_figures
from llm_stage.store import AnswerStore, differing, read_answers

BATCH = 4096
"""Answers written at once."""


def merge(config: MergeConfig) -> None:
    """Joins shards; each question must be answered in exactly one of them."""
    console = Console(markup=False, highlight=False)
    dataset = SessionDataset.load(config.dataset, verify=True)
    space = row_space(dataset, read_candidates(config.candidates, dataset))
    check_encoder(config.encoder)
    check_figures()
    identity, label, answers = read_shards(config.shards)
    here = data_identity(dataset, config.candidates)
    if differences := differing({key: identity.get(key) for key in here}, here):
        key, there, given = differences[0]
        raise InputError(f"{config.shards[0]}: answered with {key} {there}, not {given}")
    order = space.order.tolist()
    if missing := set(order) - answers.keys():
        raise InputError(f"--shards: {len(missing):,} of {len(order):,} questions are answered in none of the folders")
    if strange := answers.keys() - set(order):
        raise InputError(f"--shards: row {min(strange)} is answered, but is no question of {config.dataset}")
    if is_finished(config.out, config, identity):
        console.print(f"{config.out}: finished already", soft_wrap=True)
        return
    with AnswerStore(config.out / "answers", identity | {"label": label}) as store:
        due = (row for row in order if row not in store)
        while batch := list(islice(due, BATCH)):
            store.append(batch, [answers[row] for row in batch])
        finish(store, config.out, config, identity, label, dataset, space, console)


def read_shards(shards: Sequence[Path]) -> tuple[dict[str, Any], str, dict[int, Answer]]:
    """What the shards have in common, their engine's label, and all their answers by row.

    Raises:
      InputError: a folder has no answers, differs from the first, or answers a row that another one has.
    """
    if not shards:
        raise InputError("--shards: at least one folder is due")
    common: dict[str, Any] | None = None
    answers: dict[int, Answer] = {}
    for shard in shards:
        identity, found = read_answers(shard / "answers")
        if not isinstance(identity.get("label"), str):
            raise InputError(f"{shard / 'answers/identity.json'}: a label is due")
        identity = {key: value for key, value in identity.items() if key != "shard"}
        common = identity if common is None else common
        if differences := differing(common, identity):
            key, there, here = differences[0]
            raise InputError(f"{shard}: answered with {key} {here}, but {shards[0]} with {there}")
        for row, answer in found:
            if row in answers:
                raise InputError(f"{shard}: answers row {row}, which an earlier folder answers too")
            answers[row] = answer
    assert common is not None
    return {key: value for key, value in common.items() if key != "label"}, common["label"], answers


def main(argv: Sequence[str] | None = None) -> None:
    cli.run(merge, MergeConfig, argv, prog="python -m llm_stage.merge")


if __name__ == "__main__":
    main()
