"""From the text of an answer to what it names. The text is distrusted: nothing it says can raise an error."""

import html
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Named(NamedTuple):
    """What an answer names."""

    picks: tuple[int, ...]
    """In the order named, without duplicates."""
    invalid: int
    """Pieces that name nothing."""
    duplicates: int


def without_thoughts(text: str) -> str:
    """What a reasoning model says after ``</think>``; nothing where it was cut off before: thoughts are no answer."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def parse_numbers(text: str, largest: int) -> Named:
    """Reads the first JSON list of numbers, ``[3, 12]``; numbers from 1 to ``largest`` count.

    A list without its end lost its last number's end too (``[3, 1`` may have been 12), so that number is invalid.
    """
    _, found, rest = text.partition("[")
    if not found:
        return Named((), int(bool(text.strip())), 0)
    body, closed, _ = rest.partition("]")
    pieces = [piece.strip() for piece in body.split(",")]
    torn = 0
    if not closed:
        torn = int(bool(pieces.pop()))
    # At most 9 digits: int() refuses very long ones.
    numbers = [int(p) if re.fullmatch(r"[0-9]{1,9}", p) else 0 for p in pieces if p]
    return _count([n if 1 <= n <= largest else None for n in numbers], torn)


def match_titles(text: str, titles: Mapping[str, int], *, cut: bool = False) -> Named:
    """Matches ``;``-separated titles leniently.

    HTML entities, case, blanks, list numbers, quotation marks and punctuation at the end do not matter. A title that
    holds ";" itself is found because the longest run of pieces that is a title counts as one.

    Args:
      text: the answer.
      titles: `title_keys` of the items that may be named.
      cut: whether the text was stopped before its end. Its last piece may then be the beginning of another title ("Toy
        Story" of "Toy Story 2"), so it is invalid, with pieces before it that may be of the same title.
    """
    pieces = re.split(r"[;\n]", _unescape(text))
    torn = pieces.pop() if cut else ""
    pieces = [piece for piece in pieces if piece.strip()]
    widest = 1 + max((key.count(";") for key in titles), default=0)
    found: list[int | None] = []
    start = 0
    while start < len(pieces):
        if cut and widest > 1 and _begins(";".join(pieces[start:]), torn, titles):
            return _count(found, 1)
        for stop in range(min(start + widest, len(pieces)), start, -1):
            item = _look_up(";".join(pieces[start:stop]), titles)
            if item is not None or stop == start + 1:
                found.append(item)
                start = stop
                break
    return _count(found, int(bool(torn.strip())))


def title_keys(titles: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Normal form of each title to its item; of equal ones the first counts."""
    keys: dict[str, int] = {}
    for title, item in titles:
        if key := _normal(_unescape(title)):
            keys.setdefault(key, item)
    return keys


def _count(found: list[int | None], invalid: int) -> Named:
    picks = [item for item in found if item is not None]
    distinct = tuple(dict.fromkeys(picks))
    return Named(distinct, invalid + len(found) - len(picks), len(picks) - len(distinct))


def _look_up(piece: str, titles: Mapping[str, int]) -> int | None:
    without_number = re.sub(r"^\s*(\d+\s*[.):]|[-*•])\s*", "", piece)
    for form in (piece, without_number):
        # Sessions are listed as title_id.
        for variant in (form, re.sub(r"_\d+\s*$", "", form)):
            item = titles.get(_normal(variant))
            if item is not None:
                return item
    return None


def _begins(whole: str, torn: str, titles: Iterable[str]) -> bool:
    """Whether some title goes on behind the pieces ``whole`` with one that begins with ``torn``."""
    beginning = f"{_normal(whole)};{_normal(torn)}"
    return any(title.startswith(beginning) for title in titles)


def _unescape(text: str) -> str:
    """Twice: some catalogues hold ``&amp;amp;``."""
    return html.unescape(html.unescape(text))


def _normal(text: str) -> str:
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return re.sub(r"\s*;\s*", ";", text).strip(" \"'“”‘’«»`*").rstrip(" .,;:!")
