"""Three ways to have a language model name intents: `Structured`, `Free`, `Score` (``--decode``)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from dmsrec_jax.data import SessionDataset
from dmsrec_jax.errors import InputError
from llm_stage.config import RunConfig
from llm_stage.engines.base import Answer, Engine, Questions, UnfinishedError
from llm_stage.engines.language_model import Continuations, Generation, LanguageModel, Likelihoods, NumberList
from llm_stage.parse import Named, match_titles, parse_numbers, title_keys, without_thoughts
from llm_stage.prompts import (
    Chat,
    clean,
    numbered_lines,
    quoted_lines,
    read_template,
    released_candidates,
    released_session,
)

SHORTEST_TITLE = 20
"""Characters to which titles are cut, at most, where a prompt is too long for the model."""


R = TypeVar("R")


class Question(NamedTuple):
    """One session: items that have a title, others cannot be named."""

    session: list[int]
    candidates: list[int]


def llm_engine(model: LanguageModel, config: RunConfig, dataset: SessionDataset) -> Engine:
    """The engine that asks ``model`` in the way ``config.decode`` says.

    Raises:
      InputError: the data set has no titles, or the prompt template does not fit.
    """
    ways: dict[str, type[Structured | Free | Score]] = {"structured": Structured, "free": Free, "score": Score}
    return ways[config.decode](model, config, dataset)


class _Decoder(ABC, Generic[R]):
    """What the three ways share: titles, label, identity, and shorter titles where a prompt is too long.

    R is what the model says to one question.
    """

    def __init__(self, model: LanguageModel, config: RunConfig, dataset: SessionDataset) -> None:
        if dataset.titles is None:
            raise InputError(f"{dataset.path}: has no titles, and a language model reads titles")
        self.model = model
        self.titles = dataset.titles
        self.template = read_template(config.prompt, config.decode)
        self.max_intents = config.max_intents
        self.title_chars = config.title_chars
        self.max_new_tokens = config.max_new_tokens or self.default_new_tokens(config.max_intents)
        self.label = f"{model.label}, {config.decode} decoding"
        self.identity: dict[str, Any] = {
            **model.identity,
            "decode": config.decode,
            "prompt": self.template.hash,
            "max_intents": config.max_intents,
            "max_new_tokens": self.max_new_tokens,
            "title_chars": config.title_chars,
        }
        self.batch_size = config.batch_size or model.batch_size

    @staticmethod
    def default_new_tokens(max_intents: int) -> int:
        """Tokens an answer may take."""
        return 512

    def answer(self, questions: Questions) -> list[Answer]:
        """See `Engine`. A prompt that is too long for the model is tried with ever shorter titles.

        Raises:
          UnfinishedError: the model cannot go on; with the answers read so far.
        """
        asked = self.questions(questions)
        answers: dict[int, Answer] = {}
        title_chars = self.title_chars
        while rows := [row for row, question in enumerate(asked) if question.candidates and row not in answers]:
            failure = None
            try:
                said = dict(zip(rows, self.ask([asked[row] for row in rows], title_chars), strict=True))
            except UnfinishedError as error:
                said, failure = {rows[place]: one for place, one in error.found.items()}, str(error)
            read = {row: self.read(one, asked[row], title_chars) for row, one in said.items()}
            answers |= {row: answer for row, answer in read.items() if answer is not None}
            if failure is not None:
                raise UnfinishedError(failure, answers)
            if title_chars <= SHORTEST_TITLE:
                break
            title_chars = max(SHORTEST_TITLE, title_chars // 2)
        return [answers.get(row, Answer(())) for row in range(len(asked))]

    @abstractmethod
    def ask(self, questions: Sequence[Question], title_chars: int) -> list[R]:
        """What the model says to each question, with titles of at most ``title_chars`` characters."""

    @abstractmethod
    def read(self, said: R, question: Question, title_chars: int) -> Answer | None:
        """The answer in what was said; None where the prompt was too long for the model."""

    def questions(self, questions: Questions) -> list[Question]:
        """Sessions and candidates as item ids, without items that have no title."""

        def titled(items: np.ndarray) -> list[int]:
            return [i for i in items.tolist() if self.titles[i].strip()]

        n = len(questions.candidates)
        return [Question(titled(questions.sessions[row]), titled(questions.candidates[row])) for row in range(n)]

    def clean(self, items: Sequence[int], title_chars: int) -> list[str]:
        return [clean(self.titles[i], title_chars) for i in items]


class _Chatting(_Decoder[Generation]):
    """Decoding that asks and reads an answer."""

    def ask(self, questions: Sequence[Question], title_chars: int) -> list[Generation]:
        """See `_Decoder`."""
        chats = [self.chat(question, title_chars) for question in questions]
        return self.model.chat(chats, self.max_new_tokens, self.grammars(questions))

    def read(self, said: Generation, question: Question, title_chars: int) -> Answer | None:
        """See `_Decoder`."""
        if said.text is None:
            return None
        named = self.named(without_thoughts(said.text), said.cut, question, title_chars)
        tokens = (said.prompt_tokens, said.cached_tokens, said.output_tokens)
        return Answer(named.picks, said.text, named.invalid, named.duplicates, *tokens, int(said.refused))

    def preview(self, questions: Questions) -> list[tuple[str, int]]:
        """See `Engine`."""
        return [self.model.preview(self.chat(question, self.title_chars)) for question in self.questions(questions)]

    @abstractmethod
    def chat(self, question: Question, title_chars: int) -> Chat:
        """The prompt."""

    @abstractmethod
    def grammars(self, questions: Sequence[Question]) -> list[NumberList] | None:
        """What the answers must look like."""

    @abstractmethod
    def named(self, text: str, cut: bool, question: Question, title_chars: int) -> Named:
        """What an answer names, as item ids; ``cut``: see `Generation`."""


class Structured(_Chatting):
    """Numbered candidates; the answer is a JSON list of their numbers, so that every intent is a candidate."""

    @staticmethod
    def default_new_tokens(max_intents: int) -> int:
        # A number of the list takes up to 5 tokens with its comma; 16 are for what some services put around the list.
        return 5 * max_intents + 16

    def chat(self, question: Question, title_chars: int) -> Chat:
        return self.template.fill(
            session=quoted_lines(self.clean(question.session, title_chars)),
            candidates=numbered_lines(self.clean(question.candidates, title_chars)),
            limit=str(self.max_intents),
        )

    def grammars(self, questions: Sequence[Question]) -> list[NumberList]:
        sizes = (len(question.candidates) for question in questions)
        return [NumberList(size, min(self.max_intents, size)) for size in sizes]

    def named(self, text: str, cut: bool, question: Question, title_chars: int) -> Named:
        named = parse_numbers(text, len(question.candidates))
        picks = tuple(question.candidates[number - 1] for number in named.picks)
        return named._replace(picks=picks[: self.max_intents])


class Free(_Chatting):
    """The released prompts word for word; the answer is ``;``-separated titles (paper, section 4.2)."""

    def chat(self, question: Question, title_chars: int) -> Chat:
        return self.template.fill(
            session=released_session(self.clean(question.session, title_chars), question.session),
            candidates=released_candidates(self.clean(question.candidates, title_chars)),
        )

    def grammars(self, questions: Sequence[Question]) -> None:
        return None

    def named(self, text: str, cut: bool, question: Question, title_chars: int) -> Named:
        items = [*question.candidates, *question.session]
        as_shown = zip(self.clean(items, title_chars), items, strict=True)
        return match_titles(text, title_keys([*as_shown, *((self.titles[i], i) for i in items)]), cut=cut)


class Score(_Decoder[Likelihoods]):
    """The candidates with the highest log P(title | session) − log P(title) under the model.

    Of equal scores, the better candidate's comes first.
    """

    def __init__(self, model: LanguageModel, config: RunConfig, dataset: SessionDataset) -> None:
        super().__init__(model, config, dataset)
        self.prior: dict[str, float] = {}
        """log P(title), after the prompt of an empty session; of each title once."""

    def ask(self, questions: Sequence[Question], title_chars: int) -> list[Likelihoods]:
        """See `_Decoder`.

        Raises:
          InputError: the titles that are due now do not fit the model even without a session.
        """
        titles = [self.clean(question.candidates, title_chars) for question in questions]
        unseen = sorted({title for row in titles for title in row} - self.prior.keys())
        if unseen:
            prior = self.model.score([Continuations(self.prefix([], title_chars), self._texts(unseen))])[0]
            if prior.log_likelihoods is None:
                raise InputError("the longest titles do not fit the model; lower --title-chars")
            self.prior.update(zip(unseen, prior.log_likelihoods.tolist(), strict=True))
        prefixes = [self.prefix(question.session, title_chars) for question in questions]
        return self.model.score([Continuations(p, self._texts(row)) for p, row in zip(prefixes, titles, strict=True)])

    def read(self, said: Likelihoods, question: Question, title_chars: int) -> Answer | None:
        """See `_Decoder`."""
        found, prompt_tokens, cached_tokens = said
        if found is None:
            return None
        gain = found - np.array([self.prior[title] for title in self.clean(question.candidates, title_chars)])
        best = [place for place in np.argsort(-gain, kind="stable").tolist() if np.isfinite(gain[place])]
        # One item may be a candidate twice: each counts once.
        picks = tuple(dict.fromkeys(question.candidates[place] for place in best))[: self.max_intents]
        invalid = int(np.count_nonzero(~np.isfinite(gain)))
        return Answer(picks, "", invalid, 0, prompt_tokens, cached_tokens, 0)

    def preview(self, questions: Questions) -> list[tuple[str, int]]:
        """See `Engine`; the prompt is what the candidates are scored after, its tokens include theirs."""
        previews = []
        for question in self.questions(questions):
            text, tokens = self.model.preview(self.prefix(question.session, self.title_chars))
            titles = "".join(self._texts(self.clean(question.candidates, self.title_chars)))
            previews.append((text, tokens + self.model.preview(titles)[1]))
        return previews

    def prefix(self, session: Sequence[int], title_chars: int) -> str:
        """All that comes before the next title."""
        lines = (f"- {title}\n" for title in self.clean(session, title_chars))
        return self.template.fill(session="".join(lines)).user

    @staticmethod
    def _texts(titles: Sequence[str]) -> list[str]:
        return [f" {title}\n" for title in titles]
