"""Prompts: a template file, titles made harmless, and the hash that names the result.

A template file has two parts, split by the line ``=== user ===``: above it the system message, the same for all
sessions (so a prefix cache holds it), below it the user message with the places ``{session}`` and ``{candidates}``.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dmsrec_jax.errors import InputError

FOLDER = Path(__file__).with_name("templates")
SEPARATOR = "=== user ==="
HARMLESS = str.maketrans("<>[]{}", "‹›()()")
"""Chat templates mark turns with <|im_end|>, [INST], <start_of_turn> …: no title can write such a mark."""


class Chat(NamedTuple):
    """One prompt."""

    system: str
    user: str


class Template(NamedTuple):
    """A prompt template."""

    system: str
    user: str

    @property
    def hash(self) -> str:
        """SHA-256 of the template's text, in hexadecimal."""
        return hashlib.sha256(f"{self.system}\n{SEPARATOR}\n{self.user}".encode()).hexdigest()

    def fill(self, **places: str) -> Chat:
        """The prompt with its places filled; what is filled in is not looked at again."""
        return Chat(_fill(self.system, places), _fill(self.user, places))


def read_template(path: Path | None, decode: str) -> Template:
    """Reads a template file; by default the one of this way of decoding.

    Raises:
      InputError: the file is missing, no text, or lacks a part or place.
    """
    path = path or FOLDER / f"{decode}.txt"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"--prompt {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"--prompt {path}: not UTF-8 text") from None
    system, found, user = text.removesuffix("\n").partition(f"{SEPARATOR}\n")
    if not found:
        raise InputError(f"--prompt {path}: the line {SEPARATOR!r} is due between system and user message")
    for place in ("{session}",) if decode == "score" else ("{session}", "{candidates}"):
        if user.count(place) != 1:
            raise InputError(f"--prompt {path}: {place} is due once in the user message")
    return Template(system.removesuffix("\n"), user)


def clean(title: str, longest: int) -> str:
    """A title as one line of plain text: no control or formatting characters, no marks of chat templates, capped.

    Args:
      title: as the catalogue has it.
      longest: characters at most; what is cut ends in "…".
    """
    # Categories C*: control characters, direction overrides, unassigned; Z*: all kinds of blanks and line breaks.
    kinds = ((c, unicodedata.category(c)[0]) for c in title)
    text = " ".join("".join(" " if kind in "CZ" else c for c, kind in kinds).split()).translate(HARMLESS)
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def quoted_lines(titles: Sequence[str]) -> str:
    """``- "title"`` line by line."""
    return "\n".join(f"- {json.dumps(title, ensure_ascii=False)}" for title in titles)


def numbered_lines(titles: Sequence[str]) -> str:
    """``1. "title"`` line by line."""
    return "\n".join(f"{n}. {json.dumps(title, ensure_ascii=False)}" for n, title in enumerate(titles, 1))


def released_session(titles: Sequence[str], ids: Sequence[int]) -> str:
    """A session as the released code writes it."""
    return "".join(f"{n}.{title}_{i} \n " for n, (title, i) in enumerate(zip(titles, ids, strict=True), 1))


def released_candidates(titles: Sequence[str]) -> str:
    """Candidates as the released code writes them, counted from 0."""
    return "".join(f"{n}.{title} \n " for n, title in enumerate(titles))


def _fill(template: str, places: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda place: places.get(place[1], place[0]), template)
