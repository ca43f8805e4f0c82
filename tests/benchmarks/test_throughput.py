"""The comparison's own flags."""

import pytest

from benchmarks.throughput import main


@pytest.mark.parametrize("flag", ["--rounds", "--batch-size", "--d", "--seconds"])
def test_numbers_that_measure_nothing_are_refused_first(refused, flag):
    assert f"{flag} 0" in refused(main, "--dataset", "nowhere", flag, 0)


def test_seconds_that_are_no_number(refused):
    assert "--seconds nan" in refused(main, "--dataset", "nowhere", "--seconds", "nan")
