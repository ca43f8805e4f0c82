import dataclasses
import subprocess
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
import pytest

from dmsrec_jax import cli, config
from dmsrec_jax.cli import from_mapping, parse
from dmsrec_jax.data.config import PrepareDemo
from dmsrec_jax.errors import InputError
from tests.conftest import command

COMMANDS = {
    "train": config.TrainConfig,
    "sweep": config.SweepConfig,
    "placebo": config.PlaceboConfig,
    "candidates": config.CandidatesConfig,
    "recommend": config.RecommendConfig,
    "import_torch": config.ImportTorchConfig,
}


@dataclass(frozen=True)
class Settings:
    """Settings of a made-up command."""

    size: int
    """How big."""
    config: Path | None = None
    """Defaults."""
    mode: Literal["fast", "slow"] = "fast"
    """How fast."""
    rate: float = 0.5
    """How often."""
    names: tuple[str, ...] = ("a",)
    """Who."""
    n_max: int | None = None
    """Most."""
    loud: bool = False
    """How loud."""


def settings(*argv: str) -> Settings:
    return parse(Settings, list(argv), prog="python -m made.up")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_flag(name, capsys):
    with pytest.raises(SystemExit) as stop:
        import_module(f"dmsrec_jax.{name}").main(["--help"])
    assert stop.value.code == 0
    out, err = capsys.readouterr()
    assert f"python -m dmsrec_jax.{name}" in out
    for field in dataclasses.fields(COMMANDS[name]):
        assert f"--{field.name.replace('_', '-')}" in out
    assert err == ""


def test_every_flag_of_every_command_is_documented():
    """tyro shows the strings below the fields; a field without one would show nothing."""
    source = Path(config.__file__).read_text().splitlines()
    for number, line in enumerate(source):
        if line.startswith("    ") and ": " in line and not line.lstrip().startswith(('"', "#")) and "=" in line:
            assert source[number + 1].lstrip().startswith('"""'), line


def test_defaults_flags_and_files(tmp_path):
    assert settings("--size", "3") == Settings(3)
    path = tmp_path / "settings.yaml"
    path.write_text("size: 4\nmode: slow\nrate: 1.0e-3\nnames: [x, y]\nn-max: 7\nloud: true\n")
    expected = Settings(4, path, "slow", 1e-3, ("x", "y"), 7, True)
    assert settings("--config", str(path)) == expected
    assert settings(f"--config={path}") == expected
    assert settings("--config", str(path), "--size", "5", "--no-loud", "--n-max", "None") == dataclasses.replace(
        expected, size=5, loud=False, n_max=None
    )


def test_a_file_need_not_hold_required_flags_but_someone_must(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("# nothing yet\n")
    assert settings("--config", str(path), "--size", "5").size == 5
    with pytest.raises(InputError, match="--size"):
        settings("--config", str(path))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--size", "3", "--colour", "red"], "--colour"),
        (["--size", "three"], "--size"),
        (["--size"], "--size"),
        ([], "--size"),
        (["--size", "3", "--mode", "medium"], "medium"),
        (["--size", "3", "stray"], "stray"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml"),
        (["--size", "3", "--config"], "config"),
        (["--config", "/"], "/"),
    ],
)
def test_errors_are_one_line(argv, words):
    with pytest.raises(InputError) as error:
        settings(*argv)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not set("│╭╰") & set(str(error.value))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"colour": "red"}, "unknown key 'colour'; known are config, "),
        ({"size": "three"}, "size: 'three' is not of type int"),
        ({"size": 1.5}, "size"),
        ({"size": [1, 2]}, "size"),
        ({"size": None}, "size"),
        ({"size": {"a": 1}}, "size"),
        ({"mode": "medium"}, "mode"),
        ({"loud": "perhaps"}, "loud"),
        ({7: 1}, "unknown key 7"),
    ],
)
def test_values_are_typed_and_named(values, words):
    with pytest.raises(InputError, match=r"^file\.yaml: ") as error:
        from_mapping(Settings, values, source=Path("file.yaml"))
    assert words in str(error.value)


def fail(_: Settings) -> None:
    raise InputError("first\n  second   third")


def fill_the_disk(_: Settings) -> None:
    raise OSError(28, "No space left on device", "big.npy")


def stop(_: Settings) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("action", "code", "line"),
    [
        (fail, 2, "up: error: first second third\n"),
        (fill_the_disk, 2, "up: error: big.npy: No space left on device\n"),
        (stop, 130, "up: interrupted\n"),
    ],
)
def test_exit_codes(capsys, action, code, line):
    with pytest.raises(SystemExit) as end:
        cli.run(action, Settings, ["--size", "1"], prog="python -m made.up")
    assert end.value.code == code
    assert capsys.readouterr().err == line


def test_names_that_no_json_could_hold_are_refused(capsys):
    with pytest.raises(SystemExit) as end:
        cli.run(stop, Settings, ["--size", "d\udce9"], prog="python -m made.up")
    assert end.value.code == 2
    assert capsys.readouterr().err == "up: error: 'd\\udce9': is not UTF-8\n"


def test_subcommands(capsys):
    seen: list[Settings] = []
    cli.run(seen.append, {"one": Settings, "two": PrepareDemo}, ["one", "--size", "2"], prog="made.up")
    assert seen == [Settings(2)]
    with pytest.raises(SystemExit) as end:
        cli.run(seen.append, {"one": Settings, "two": PrepareDemo}, ["three"], prog="made.up")
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--backbone", "srgnn", "--dataset", "nowhere"),
        ("candidates", "--run", "nowhere", "--out", "out"),
        ("recommend", "--run", "nowhere", "--session", "x"),
        ("import_torch", "--backbone", "srgnn", "--weights", "w.npz", "--dataset", "nowhere", "--out", "out"),
    ],
    ids=lambda words: words[0],
)
def test_real_processes_end_with_one_line(tmp_path, words):
    done = subprocess.run(command(*words), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{words[0]}: error: ")
    assert done.stderr.count("\n") == 1
    assert "nowhere" in done.stderr
    assert list(tmp_path.iterdir()) == []


def exhaust_numpy(_: object) -> None:
    np.zeros(1 << 60, np.int8)


def exhaust_jax(_: object) -> None:
    jnp.zeros((1 << 20, 1 << 24)).block_until_ready()


@pytest.mark.parametrize("command", [exhaust_numpy, exhaust_jax])
def test_lack_of_memory_is_one_line(refused, command):
    def main(argv: list[str]) -> None:
        cli.run(command, config.TrainConfig, argv, prog="train")

    line = "train: error: out of memory; lower --batch-size, --d, --n-neighbors, --device-data-mb\n"
    assert refused(main, "--backbone", "srgnn") == line


def test_other_errors_keep_their_traceback():
    def fail(_: object) -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED: said by something else")

    with pytest.raises(RuntimeError, match="something else"):
        cli.run(fail, config.TrainConfig, ["--backbone", "srgnn"], prog="train")
