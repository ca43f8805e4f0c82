"""Trains a sweep's runs of one program and writes their run folders: what `train` does, for many runs at once."""

import math
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from rich.console import Console

from dmsrec_jax.cli import is_out_of_memory
from dmsrec_jax.data import Split
from dmsrec_jax.files import staged_folder
from dmsrec_jax.graphs import IntentRows
from dmsrec_jax.history import SELECT_BY, History, best_epoch, is_stale, write_metrics
from dmsrec_jax.members import MemberProgram, Start, split_constants
from dmsrec_jax.metrics import summarise
from dmsrec_jax.outcome import Trained, epoch_entry, kept_settings, write_outcome
from dmsrec_jax.parallel import Devices
from dmsrec_jax.plan import Member
from dmsrec_jax.recipe import Inputs, hyper, item_graph, model_settings, parts, run_keys
from dmsrec_jax.runs import new_model, write_config
from dmsrec_jax.scoring import Scorer
from dmsrec_jax.steps import ModelProgram, initial_state


class Judges(NamedTuple):
    """The sessions that a group's models are scored on."""

    epochs: Scorer
    """Those that choose the epoch: validation, or under the paper's protocol the test set."""
    test: Scorer
    no_intent: Scorer | None
    """The test set without its intents; None of plain models."""


class Runner:
    """A run in training: its history, and its parameters at the best epoch."""

    def __init__(self, member: Member, program: ModelProgram, start: Start) -> None:
        self.member, self.program, self.start = member, program, start
        self.best: nnx.State = start.state.params
        self.history: History = []
        self.failure: str | None = None

    @property
    def trains(self) -> bool:
        """Whether `train` would go on with it."""
        config = self.member.config
        done = len(self.history) >= config.epochs or is_stale(self.history, config.patience)
        return not done and self.failure is None

    def ranks(self, judge: Scorer, params: nnx.State) -> np.ndarray:
        return judge.ranks(params, self.program.constants)


def train_group(
    out: Path, members: list[Member], inputs: Inputs, devices: Devices, at_once: int, console: Console
) -> None:
    """Trains runs of one program, and writes those that end; says which do not.

    Args:
      out: the sweep's folder.
      members: as of `plan.groups`.
      inputs: their data.
      devices: each trains runs of its own.
      at_once: runs at once on a device; fewer where memory does not suffice.
      console: where progress is shown.
    """
    config = members[0].config
    (rows, intents), valid, test, sessions = parts(config, inputs)
    graph = item_graph(config, inputs.dataset, sessions)
    model, _ = new_model(model_settings(config, inputs), graph, run_keys(config.seed)[0], inputs.item_text)
    shared = split_constants(model.constants)[1]

    def runner(member: Member) -> Runner:
        init_key, dropout_key, order_key = run_keys(member.config.seed)
        program, params = new_model(model_settings(member.config, inputs), graph, init_key, inputs.item_text)
        fixed = split_constants(program.constants)[0]
        state = jax.device_get(initial_state(params, hyper(member.config), dropout_key))  # else kept on a device
        start = Start(fixed, state, order_key)
        return Runner(member, ModelProgram(model.graphdef, nnx.merge_state(fixed, shared)), start)

    def judge_of(sessions: Split, intents: IntentRows | None) -> Scorer:
        return Scorer(model, sessions, inputs.dataset.longest, intents)

    of_test = judge_of(*test)
    no_intent = judge_of(inputs.dataset.test, None) if config.intents else None
    judges = Judges(of_test if valid is None else judge_of(*valid), of_test, no_intent)
    program = MemberProgram(rows, config.batch_size, model, devices, console, intents)
    waiting, size = list(members), even_size(len(members), at_once, devices.count)
    while waiting:
        runners = [runner(member) for member in waiting[:size]]
        try:
            compile_seconds = train_together(program, runners, size, judges.epochs, len(rows), console)
        except (MemoryError, RuntimeError) as error:
            if size == devices.count or not is_out_of_memory(error):
                raise
            fewer = even_size(len(waiting), size // devices.count // 2, devices.count)
            console.print(f"out of memory with {size} runs at once; {fewer} from here on")
            program.forget()
            size = fewer
            continue
        waiting = waiting[size:]
        for one in runners:
            if one.failure is None:
                write_run(out / one.member.folder, one, inputs, judges, compile_seconds)
            else:
                console.print(f"{one.member}: {one.failure}; try a smaller lr than {one.member.config.lr}")


def even_size(n: int, at_once: int, devices: int) -> int:
    """Runs of a round, a multiple of ``devices``: at most ``at_once`` on each, and rounds of one size."""
    rounds = -(-n // (at_once * devices))
    return -(-n // (rounds * devices)) * devices


def train_together(
    program: MemberProgram, runners: list[Runner], size: int, judge: Scorer, sessions: int, console: Console
) -> float:
    """Trains until `train` would have stopped every run; the epochs that a stopped one still makes do not count.

    Args:
      program: trains ``size`` runs.
      runners: at most as many; the last one fills the empty places.
      size: see there.
      judge: chooses each run's epoch.
      sessions: training sessions of a run.
      console: where progress is shown.

    Returns:
      The seconds that compiling took.
    """
    places = runners + runners[-1:] * (size - len(runners))
    compile_seconds = program.start([one.start for one in places])
    console.print(f"{len(runners)} at once, {program.steps} steps an epoch; compiled in {compile_seconds:.1f} s")
    epoch = 0
    while going := [(place, one) for place, one in enumerate(runners) if one.trains]:
        started = time.perf_counter()
        losses = program.run(epoch)
        seconds = (time.perf_counter() - started) / len(going)
        everyones = program.params()
        for place, one in going:
            loss = float(losses[place])
            if not math.isfinite(loss):
                one.failure = f"epoch {epoch + 1}: the loss is {loss}"
                continue
            params = jax.tree.map(lambda leaf, at=place: np.array(leaf[at]), everyones)
            metrics = summarise(one.ranks(judge, params))
            one.history.append(epoch_entry(one.member.config, epoch, loss, metrics, sessions, seconds))
            if best_epoch(one.history) == epoch + 1:
                one.best = params
        epoch += 1
        console.print(_epoch_line(epoch, [one for _, one in going if one.failure is None]), soft_wrap=True)
    return compile_seconds


def _epoch_line(epoch: int, trained: list[Runner]) -> str:
    if not trained:
        return f"epoch {epoch:>2}  all diverged"
    losses = [one.history[-1]["loss"] for one in trained]
    name = "validation" if "validation" in trained[0].history[-1] else "test"
    scores = [one.history[-1][name]["raw"][SELECT_BY] for one in trained]
    seconds = sum(one.history[-1]["seconds"] for one in trained)
    runs = str(trained[0].member) if len(trained) == 1 else f"{len(trained)} runs"
    chosen_by = f"{name} {SELECT_BY.upper()} {_span(scores, 2)}"
    return f"epoch {epoch:>2}  {runs}  loss {_span(losses, 4)}  {chosen_by}  {seconds:.1f} s"


def _span(values: list[float], digits: int) -> str:
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low}–{high}"


def write_run(run: Path, one: Runner, inputs: Inputs, judges: Judges, compile_seconds: float) -> None:
    """Writes a run folder, whole or not at all."""
    ranks = one.ranks(judges.test, one.best)
    without = one.ranks(judges.no_intent, one.best) if judges.no_intent else None
    with staged_folder(run, marker="config.yaml", overwrite=True) as staged:
        write_config(staged, kept_settings(one.member.config, inputs.dataset, run))
        write_metrics(staged, one.history)
        trained = Trained(one.program, one.best, one.history, ranks, without, compile_seconds)
        write_outcome(staged, one.member.config, inputs, trained)
