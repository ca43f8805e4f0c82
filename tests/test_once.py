import io
import subprocess
import sys

import pytest
from rich.console import Console

from dmsrec_jax.errors import InputError
from dmsrec_jax.once import Once


@pytest.fixture
def take(tmp_path):
    """Takes a step whose result is its input and flag; returns what was printed."""
    source, result = tmp_path / "source", tmp_path / "out" / "result"
    source.write_text("a")
    cleared = []

    def call(flag=1, fails=False):
        def action():
            if fails:
                raise KeyboardInterrupt
            result.write_text(f"{source.read_text()} {flag}")

        printed = io.StringIO()
        with Once(tmp_path / "out", 1, Console(file=printed)) as once:
            once.take("copy", action, {"some_flag": flag}, {"source": source}, result, lambda: cleared.append(flag))
        return printed.getvalue()

    call.source, call.result, call.cleared = source, result, cleared
    return call


def test_a_step_is_taken_once(take):
    assert "done in 0 s" in take()
    assert "skipped" in take()
    assert take.cleared == [1]


def test_what_changed_is_named_and_made_anew(take):
    take()
    assert "running, --some-flag changed" in take(flag=2)
    assert take.result.read_text() == "a 2"
    take.source.write_text("b")
    assert "running, source changed" in take(flag=2)
    assert take.result.read_text() == "b 2"
    take.result.unlink()
    assert "running" in take(flag=2)


def test_what_was_cut_off_goes_on_unless_it_was_of_something_else(take):
    take()
    with pytest.raises(KeyboardInterrupt):
        take(flag=2, fails=True)
    assert "goes on" in take(flag=2)
    assert take.cleared == [1, 2]
    with pytest.raises(KeyboardInterrupt):
        take(flag=3, fails=True)
    assert "--some-flag changed" in take(flag=4)
    assert take.cleared == [1, 2, 3, 4]


def test_only_one_process_is_at_work(tmp_path):
    with (
        Once(tmp_path, 1, Console()),
        pytest.raises(InputError, match="another process is at work"),
        Once(tmp_path, 1, Console()),
    ):
        pass


def test_a_command_that_fails_ends_all_with_its_code(tmp_path, monkeypatch):
    (tmp_path / "ends.py").write_text(
        "import os, sys\nos.kill(os.getpid(), 9) if '--die=1' in sys.argv else sys.exit(2)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Once(tmp_path, 1, Console()) as once:
        with pytest.raises(SystemExit) as stop:
            once.command("ends", {"left_out": None})
        assert stop.value.code == 2
        with pytest.raises(InputError, match="killed by signal 9"):
            once.command("ends", {"die": 1})


def test_a_killed_command_keeps_the_lock_until_it_ends(tmp_path):
    """The lock is inherited: whoever outlives the process that started it still keeps others out."""
    (tmp_path / "sleeps.py").write_text("import sys; print('up', flush=True); sys.stdin.read()")
    with Once(tmp_path, 1, Console()) as once:
        child = subprocess.Popen(
            [sys.executable, tmp_path / "sleeps.py"], stdin=subprocess.PIPE, pass_fds=[once._lock.fileno()]
        )
    with pytest.raises(InputError), Once(tmp_path, 1, Console()):
        pass
    child.communicate(b"")
    with Once(tmp_path, 1, Console()):
        pass
