"""``python -m llm_stage.run``: an engine names the intents of all sessions; resumable row by row."""

import importlib
import time
from collections.abc import Iterator, Sequence

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from dmsrec_jax import cli
from dmsrec_jax.artifacts import read_candidates
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import check_no_file
from llm_stage.config import RunConfig
from llm_stage.encoder import check_encoder
from llm_stage.engines.base import Answer, Engine, Questions, UnfinishedError
from llm_stage.finish import finish, is_finished
from llm_stage.questions import RowSpace, data_identity, row_space, shard_of
from llm_stage.report import check_figures
from llm_stage.store import AnswerStore

ENGINES = {
    "vllm": "llm_stage.engines.vllm_engine",
    "openai": "llm_stage.engines.openai_engine",
    "transformers": "llm_stage.engines.transformers_engine",
    "retrieval": "llm_stage.engines.retrieval",
}
"""Modules with a `build`, imported when chosen."""

SAMPLED = 64
"""Questions whose tokens --dry-run counts."""

LONGEST_TIMEOUT = 1_000_000
"""Seconds; sockets take little more."""

SECONDS_PER_LINE = 60
"""How often progress is printed where there is no terminal."""


def run(config: RunConfig) -> None:
    """Answers all questions that are not answered yet, then writes the intents and the report."""
    console = Console(markup=False, highlight=False)
    check_settings(config)
    dataset = SessionDataset.load(config.dataset, verify=True)  # answers carry its hash
    if config.check:
        engine = build_engine(config, dataset)
        check_end(config)
        console.print(f"{engine.label}, encoder {config.encoder}: at hand", soft_wrap=True)
        return
    space = row_space(dataset, read_candidates(config.candidates, dataset))
    engine = build_engine(config, dataset)
    asked = shard_of(space.order, config.shard)
    if config.dry_run:
        return dry_run(config, engine, space, asked, console)
    identity = data_identity(dataset, config.candidates) | {"engine": engine.identity}
    if is_finished(config.out, config, identity):
        console.print(f"{config.out}: finished already", soft_wrap=True)
        return
    check_end(config)
    shard = {"shard": config.shard} if config.shard else {}
    with AnswerStore(config.out / "answers", identity | {"label": engine.label} | shard) as store:
        due = np.array([row for row in asked[: config.limit].tolist() if row not in store], np.int64)
        console.print(
            f"{dataset.name}, {engine.label}: {len(asked):,} questions for {len(space.targets):,} sessions"
            + (f" (shard {config.shard})" if config.shard else "")
            + f"; {len(store):,} answered, {len(due):,} to go",
            soft_wrap=True,
        )
        try:
            pace = answer_all(engine, space, due, store, console)
            if len(store) < len(asked):
                console.print(f"{len(store):,} of {len(asked):,} answered; the same command without --limit goes on")
            elif config.shard:
                console.print(f"shard {config.shard} is whole; join all with python -m llm_stage.merge", soft_wrap=True)
            else:
                finish(store, config.out, config, identity, engine.label, dataset, space, console, pace)
        except (InputError, OSError) as error:
            cause = f"{error.filename or config.out}: {error.strerror}" if isinstance(error, OSError) else str(error)
            raise InputError(
                f"{cause} ({len(store):,} of {len(asked):,} answered and safe; the same command goes on from there)"
            ) from None


def check_settings(config: RunConfig) -> None:
    """Refuses numbers that no run can be made with."""
    counts = ("max_intents", "max_new_tokens", "title_chars", "max_model_len", "batch_size", "limit")
    least = dict.fromkeys((*counts, "concurrency", "tensor_parallel"), 1) | {"retries": 0}
    for name, due in least.items():
        value = getattr(config, name)
        if value is not None and value < due:
            raise InputError(f"{cli.flag_of(name)} {value}: at least {due} is due")
    if not 0 < config.timeout <= LONGEST_TIMEOUT:
        raise InputError(f"--timeout {config.timeout}: more than 0 and at most {LONGEST_TIMEOUT:,} is due")
    if not 0 < config.gpu_memory_utilization <= 1:
        raise InputError(f"--gpu-memory-utilization {config.gpu_memory_utilization}: more than 0 and at most 1 is due")
    if not config.tokens_per_second > 0:
        raise InputError(f"--tokens-per-second {config.tokens_per_second}: more than 0 is due")
    check_no_file(config.out, "--out ")


def build_engine(config: RunConfig, dataset: SessionDataset) -> Engine:
    """The engine that --engine names."""
    return importlib.import_module(ENGINES[config.engine]).build(config, dataset)


def check_end(config: RunConfig) -> None:
    """Refuses to begin where intents could not be encoded or reported: before hours of answering, not after."""
    check_encoder(config.encoder)
    check_figures()


def answer_all(
    engine: Engine, space: RowSpace, rows: np.ndarray, store: AnswerStore, console: Console
) -> dict[str, float]:
    """Asks batch by batch and stores each answer before the next is asked; what was measured on the way."""
    done = prompt = cached = written = 0
    began = time.monotonic()
    warm: tuple[int, float] | None = None
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
    task = bar.add_task("answering", total=len(rows))
    try:
        for batch in batches(rows, engine.batch_size):
            questions = space.questions(batch)
            try:
                answers = engine.answer(questions)
            except UnfinishedError as error:
                if error.found:  # paid for
                    rows_found = batch[list(error.found)]
                    keep(rows_found, space.questions(rows_found), list(error.found.values()), engine.label, store)
                raise
            keep(batch, questions, answers, engine.label, store)
            done += len(batch)
            prompt += sum(answer.prompt_tokens for answer in answers)
            cached += sum(answer.cached_tokens for answer in answers)
            written += sum(answer.output_tokens for answer in answers)
            now = time.monotonic()
            seconds = max(now - began, 1e-9)
            line = f"{done:,} of {len(rows):,} answered, {done / seconds:,.1f} sessions/s"
            if prompt:
                line += f", {(prompt + written) / seconds:,.0f} tokens/s, {100 * cached / prompt:.0f} % cached"
            bar.update(task, completed=done, description=line)
            if warm is None:  # with the first batch engines load their model, and print of it: no pace to go by
                warm, said = (done, now), now
                bar.start()
            elif not console.is_terminal and now - said >= SECONDS_PER_LINE:
                said = now
                left = (len(rows) - done) * (now - warm[1]) / (done - warm[0])
                console.print(f"{line}, {left / 60:,.0f} min left", soft_wrap=True)
    finally:
        bar.stop()
    if not done:
        return {}
    console.print(line, soft_wrap=True)
    return {
        "questions": done,
        "seconds": seconds,
        "sessions_per_s": done / seconds,
        "tokens_per_s": (prompt + written) / seconds,
    }


def keep(rows: np.ndarray, questions: Questions, answers: Sequence[Answer], label: str, store: AnswerStore) -> None:
    """Stores the answers to the questions of ``rows``, int64 [n], by the engine of that label.

    Raises:
      InputError: see `check_answers` and `AnswerStore.append`.
    """
    check_answers(questions, answers, label)
    store.append(rows.tolist(), answers)


def batches(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    yield from (rows[first : first + size] for first in range(0, len(rows), size))


def check_answers(questions: Questions, answers: Sequence[Answer], label: str) -> None:
    """Refuses answers that are too few, or name what was neither offered nor clicked.

    Raises:
      InputError: the engine at fault.
    """
    if len(answers) != len(questions.candidates):
        raise InputError(f"{label}: {len(answers)} answers to {len(questions.candidates)} questions")
    for row, answer in enumerate(answers):
        known = {*questions.candidates[row].tolist(), *questions.sessions[row].tolist()}
        if not known.issuperset(answer.picks) or len(set(answer.picks)) < len(answer.picks):
            raise InputError(f"{label}: named {answer.picks}, not distinct items of the session or its candidates")


def dry_run(config: RunConfig, engine: Engine, space: RowSpace, asked: np.ndarray, console: Console) -> None:
    """Prints the first prompts and an estimate from questions spread evenly over all."""
    console.print(f"{engine.label}: {len(asked):,} questions for {len(space.targets):,} sessions", soft_wrap=True)
    for prompt, tokens in engine.preview(space.questions(asked[:2])):
        console.print(f"--- a prompt of {tokens:,} tokens ---\n{prompt}", soft_wrap=True)
    spread = np.unique(np.linspace(0, len(asked) - 1, SAMPLED).astype(np.int64))
    counted = [tokens for _, tokens in engine.preview(space.questions(asked[spread]))]
    if not counted:
        console.print("no prompts, so no tokens")
        return
    total = len(asked) * float(np.mean(counted))
    hours = total / config.tokens_per_second / 3600
    console.print(
        f"--- estimate from {len(counted)} prompts: {np.mean(counted):,.0f} tokens each, {total / 1e6:,.1f} million in "
        f"all; {hours:,.1f} hours at {config.tokens_per_second:,.0f} tokens/s, fewer with a prefix cache",
        soft_wrap=True,
    )


def main(argv: Sequence[str] | None = None) -> None:
    cli.run(run, RunConfig, argv, prog="python -m llm_stage.run")


if __name__ == "__main__":
    main()
