"""``python -m dmsrec_jax.pipeline``: from a dataset folder to fused recommendations and a report, each step once."""

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from dmsrec_jax import cli
from dmsrec_jax.artifacts import PARTS
from dmsrec_jax.config import EvaluateConfig, PipelineConfig, TrainConfig, TrainSettings
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.data.splits import chain_folds
from dmsrec_jax.errors import InputError
from dmsrec_jax.evaluate import evaluate
from dmsrec_jax.files import read_json, sampled_sha256, sha256, staged_folder
from dmsrec_jax.neighbor_methods import METHODS
from dmsrec_jax.once import Once, command, last_taken
from dmsrec_jax.outcome import FREE
from dmsrec_jax.recipe import FUSED_FLAGS, check_flags
from dmsrec_jax.results import check_bootstrap, print_differences, print_results, read_results

FOLDERS = ("plain", "candidates", "intents", "fused", "neighbors", "report")
"""What it makes, and makes anew."""
OF_SPEED = {"batch-size", "concurrency", "gpu-memory-utilization", "retries", "tensor-parallel", "timeout", "base-url"}
FREE_OF_ANSWERS = OF_SPEED | {"pooling", "embedding-dtype", "explicit-rule"}
"""Flags of `llm_stage.run` that no LLM's answer depends on: how fast it comes, and what is made of it."""
OWN = {"dataset", "candidates", "out", "engine", "model", "encoder"}
"""Those that a pipeline gives itself, from its own flags."""
PARTIAL = {"shard", "limit", "check", "dry-run", "help"}
"""Those that end without the intents of all sessions."""


def pipeline(config: PipelineConfig) -> None:
    """Takes the steps that are due, then prints the results."""
    console = Console(markup=False, highlight=False)
    training = train_flags(config)
    check_flags(TrainConfig(**training, intents=config.out))
    dataset = SessionDataset.load(config.dataset, verify=True)
    if dataset.titles is None:
        raise InputError(f"{config.dataset}: has no titles, so no engine can name intents")
    if not 1 <= config.k <= dataset.n_items:
        raise InputError(f"--k {config.k}: 1 to {dataset.n_items} items can be had")
    if config.cross_fit is not None:
        chain_folds(dataset.train, config.cross_fit, config.seed)
    check_bootstrap(config)
    words = llm_words(config)
    if config.llm_python is not None and not config.llm_python.is_file():
        raise InputError(f"--llm-python {config.llm_python}: no such file")
    out, data = config.out, {"dataset": config.dataset}
    described = {"dataset": config.dataset / "meta.json"}
    if not (out / "steps").is_dir() and (there := [name for name in FOLDERS if (out / name).exists()]):
        raise InputError(f"--out {out}: holds {there[0]}, which no pipeline made; give another folder")
    asked = {"engine": config.engine, "model": config.model, "encoder": config.encoder}
    how = models(config) | {"engine": config.engine, "llm_flags": llm_flags(words)}
    if last_taken(out, "intents").get("flags") != how:  # hours of training may come before its turn
        folders = data | {"candidates": out / "candidates", "out": out / "intents"}
        command("llm_stage.run", asked | folders, *words, "--check", python=config.llm_python)
    with Once(out, 7, console) as once:

        def train(name: str, flags: Mapping[str, Any], inputs: Mapping[str, Path]) -> Path:
            run = out / name
            folders = {key: file.parent for key, file in inputs.items()}

            def clear() -> None:
                if run.exists():  # what is there stays until nothing can be wrong with the flags
                    once.command("dmsrec_jax.train", {**flags, **folders}, "--check")
                with staged_folder(run, marker="config.yaml", overwrite=True):
                    pass

            def action() -> None:
                once.command("dmsrec_jax.train", {**flags, **folders, "out": run}, "--resume")

            kept = {key: value for key, value in flags.items() if key not in FREE}
            once.take(name, action, kept, inputs, run / "results.json", clear)
            return run

        plain = train("plain", {key: value for key, value in training.items() if key not in FUSED_FLAGS}, described)

        flags = {"k": config.k, "cross_fit": config.cross_fit}
        candidates = out / "candidates"
        read = {"run": plain / "model.json"}

        def write_candidates() -> None:
            folders = data | {"run": plain, "out": candidates}
            once.command("dmsrec_jax.candidates", flags | folders, "--overwrite")

        once.take("candidates", write_candidates, flags, read, candidates / "candidates.json")

        # Not candidates.json, which tells of the run's times as well.
        read = described | {part: candidates / f"{part}_candidates.npy" for part in PARTS}
        # Answers may have cost hours of a GPU: other questions get another folder, and these stay.
        intents = out / "intents" / f"{config.engine}-{digest(questions(config, words), read)}"

        def ask() -> None:
            folders = data | {"candidates": candidates, "out": intents}
            once.command("llm_stage.run", asked | folders, *words, "--overwrite", python=config.llm_python)

        once.take("intents", ask, how, read, intents / "meta.json")

        fused = train("fused", training, described | {"intents": intents / "meta.json"})

        share = {"validation_fraction": config.validation_fraction} if config.validation_fraction else {}
        references = [out / "neighbors" / method for method in METHODS]

        def score_neighbors() -> None:
            once.command("dmsrec_jax.neighbors", {**share, **data, "out": out / "neighbors"}, "--overwrite")

        once.take("neighbors", score_neighbors, share, described, references[-1] / "results.json")

        best = best_reference(references)
        flags = {"bootstrap": config.bootstrap, "seed": config.seed}
        # Not results.json, which this step adds to: each training writes other times into metrics.jsonl.
        read = {run.name: run / "metrics.jsonl" for run in (plain, fused)} | {best.name: best / "ranks.npy"}

        def compare() -> None:
            for run, other in ((plain, None), (best, None), (fused, plain), (fused, best)):
                judged = EvaluateConfig(
                    run, compare=other, dataset=config.dataset, bootstrap=config.bootstrap, seed=config.seed
                )
                evaluate(judged, Console(quiet=True))

        # Differences are kept by the path of the other run.
        once.take("evaluate", compare, flags | {"out": str(out)}, read, fused / "results.json")

        runs = [plain, fused, *references]
        page = out / "report" / "report.html"

        def write_report() -> None:
            once.command("dmsrec_jax.report", flags | data | {"out": page.parent}, *runs, "--overwrite")

        once.take("report", write_report, flags, {run.name: run / "results.json" for run in runs}, page)

    print_summary(plain, fused, best, console)
    console.print(f"report: {page}", soft_wrap=True)


def train_flags(config: PipelineConfig) -> dict[str, Any]:
    """The settings of both trainings, of which the plain one takes no `FUSED_FLAGS`."""
    named = (field.name for field in dataclasses.fields(TrainSettings))
    return {name: getattr(config, name) for name in named if name != "config"}


def llm_words(config: PipelineConfig) -> list[str]:
    """The words of --llm-flags.

    Raises:
      InputError: a quotation has no end, or a flag has no place in a pipeline.
    """
    try:
        words = shlex.split(config.llm_flags)
    except ValueError as error:
        raise InputError(f"--llm-flags {config.llm_flags}: {error}") from None
    for name in llm_flags(words):
        if name in OWN:
            raise InputError(f"--llm-flags {config.llm_flags}: --{name} comes from the pipeline's own flags")
        if name in PARTIAL:
            raise InputError(f"--llm-flags {config.llm_flags}: --{name} ends without the intents of all sessions")
    return words


def llm_flags(words: list[str]) -> dict[str, list[str]]:
    """The values of each flag of the LLM stage; a file among them by its hash."""
    found: dict[str, list[str]] = {}
    values: list[str] = []
    for word in words:
        if word.startswith("--"):
            name, *rest = word.removeprefix("--").split("=", 1)
            found[name.replace("_", "-")] = values = rest
        else:
            values.append(word)
    return {name: [sha256(Path(v)) if Path(v).is_file() else v for v in values] for name, values in found.items()}


def models(config: PipelineConfig) -> dict[str, str | None]:
    """LLM and encoder by name; a folder by what is in it, for another model may come to lie there."""
    named = {"model": config.model, "encoder": config.encoder}
    return {key: sampled_sha256(Path(m)) if m is not None and Path(m).is_dir() else m for key, m in named.items()}


def questions(config: PipelineConfig, words: list[str]) -> dict[str, Any]:
    """The settings that answers depend on. An encoder counts for `retrieval` alone."""
    encodes = config.engine == "retrieval"
    free = FREE_OF_ANSWERS - {"pooling"} if encodes else FREE_OF_ANSWERS
    flags = {name: values for name, values in llm_flags(words).items() if name not in free}
    used = {name: model for name, model in models(config).items() if name != "encoder" or encodes}
    return used | {"engine": config.engine, "llm_flags": flags}


def digest(flags: Mapping[str, Any], inputs: Mapping[str, Path]) -> str:
    """Eight hexadecimal digits for flags and the bytes of inputs."""
    about = [dict(flags), {key: sha256(path) for key, path in inputs.items()}]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]


def best_reference(runs: list[Path]) -> Path:
    """The neighbour run with the best MRR@20 on validation, seen items excluded."""
    return max(runs, key=lambda run: read_json(run / "results.json")["validation"]["exclude_seen"]["mrr@20"])


def print_summary(plain: Path, fused: Path, best: Path, console: Console) -> None:
    """Plain, fused and the best reference side by side, and the paired differences of the fused run."""
    results = {run: read_results(run) for run in (plain, fused, best)}
    label = results[fused]["intents"]["provenance"]["engine_label"]
    names = {plain: "plain", fused: f"fused: {label}", best: f"{best.name} (no learning)"}
    print_results({names[run]: results[run] for run in results}, console)
    for run in (plain, best):
        print_differences(f"{names[fused]} − {names[run]}", results[fused]["differences"][str(run)], console)


def main(argv: list[str] | None = None) -> None:
    cli.run(pipeline, PipelineConfig, argv, prog="python -m dmsrec_jax.pipeline")


if __name__ == "__main__":
    main()
