"""What happens to a row that cannot be read: stop at the first, or count and report."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from dmsrec_jax.errors import InputError


class BadRows:
    """Stops at the first bad row, or (``skip``) counts bad rows by reason.

    Args:
      path: the file.
      skip: count instead of stopping.
      place: words for a row's number, "line 7" by default; called only for rows that are reported.
    """

    def __init__(self, path: Path, *, skip: bool, place: Callable[[int], str] = "line {}".format) -> None:
        self.path = path
        self.skip = skip
        self._place = place
        self._counts: Counter[str] = Counter()
        self._first: dict[str, int] = {}

    def add(self, row: int, reason: str, count: int = 1) -> None:
        """Takes ``count`` bad rows of one reason, the first of which is ``row``.

        Raises:
          InputError: bad rows are not to be skipped.
        """
        if not self.skip:
            raise InputError(f"{self.path}: {self._place(row)}: {reason}")
        self._counts[reason] += count
        self._first.setdefault(reason, row)

    def notes(self) -> tuple[str, ...]:
        """One line per reason that was met."""
        return tuple(
            f"{self.path.name}: bad rows skipped: {count:,}, the first in {self._place(self._first[reason])}: {reason}"
            for reason, count in self._counts.items()
        )
