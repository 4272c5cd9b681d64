"""The remote-reward protocol of R1-Searcher and OpenRLHF: full texts -> items to score, for those who train elsewhere.

The protocol has text and no provenance, so what `/v1/score` is told must be guessed here: where the prompt ends, which
question it asks, and what of the rest was retrieved. With `prompts` and `labels`, only the last is left to guess.

    … \\n\\nUser:question\\nAssistant: <think> | think, query \\n\\n documents \\n\\n think, answer <|endoftext|>
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from searcher.contracts.errors import InvalidInput
from searcher.contracts.question import Question
from searcher.contracts.score import GoldAnswers, ScoreItem, TextSegment
from searcher.qa.tags import DOCUMENTS_CLOSE, DOCUMENTS_OPEN, QUERY_CLOSE
from searcher.questions import load_questions

_FORMS = (
    ("\n\nUser:", "\nAssistant: <think>"),
    (
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n<think>",
    ),
)
"""What stands before the question and after it, in R1-Searcher's prompts for Qwen and for Llama."""

_SEARCHED = f"{QUERY_CLOSE}\n\n{DOCUMENTS_OPEN}\n"
_READ = f"{DOCUMENTS_CLOSE}\n\n"
_MAX_SPLIT = 254
"""More searches than any rollout allows are left unsplit: a policy must not be able to stop its trainer."""

_KEY_BLANK = re.compile(r"""[,.:"'\[\]\-=+|!@#$%^&*();<>?/！￥…（）—{}：”“《》？]""")
_KEY_IMPORT = re.compile(r"import\s[a-z.]+(\sas\s[a-z.]+)\n")

_Texts = Annotated[
    tuple[Annotated[str, Field(max_length=16_777_216)], ...],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    Field(min_length=1, max_length=4_096),
]


class RewardRequest(BaseModel):
    """`POST /get_reward`. Other fields are their clients' business."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    query: _Texts
    """Prompt and response in one text, special tokens kept."""
    prompts: _Texts | None = None
    """Newer OpenRLHF: the prompt alone. The response is what follows it, whatever that says."""
    labels: tuple[GoldAnswers, ...] | None = None
    """Newer OpenRLHF: the gold answer or answers. Where they come along, no question is looked up."""


@dataclass(frozen=True)
class KnownQuestions:
    """Gold answers by the published look-up key."""

    source: str
    by_key: Mapping[str, Question]

    @classmethod
    def load(cls, path: Path) -> "KnownQuestions":
        """Raises InvalidInput for a malformed file, and for two questions that the key cannot tell apart."""
        by_key: dict[str, Question] = {}
        for question in load_questions(path):
            known = by_key.setdefault(look_up_key(question.question), question)
            if known.answers != question.answers:
                raise InvalidInput(
                    f"{path}: the questions {known.id!r} and {question.id!r} read alike to the published look-up, but "
                    "have different answers; remove one"
                )
        return cls(source=str(path), by_key=by_key)


def look_up_key(question: str) -> str:
    """The published normalisation: lower case, without punctuation (and Python imports), whitespace collapsed."""
    return " ".join(_KEY_IMPORT.sub(" ", _KEY_BLANK.sub(" ", question.lower())).split())


def items_of(request: RewardRequest, known: KnownQuestions | None) -> tuple[ScoreItem, ...]:
    """One item per text, in order. Raises InvalidInput that names the first text which cannot be scored."""
    for name, values in (("prompts", request.prompts), ("labels", request.labels)):
        if values is not None and len(values) != len(request.query):
            raise InvalidInput(f"{name}: {len(values)} for {len(request.query)} texts in query")
    return tuple(_item(request, at, known) for at in range(len(request.query)))


def _item(request: RewardRequest, at: int, known: KnownQuestions | None) -> ScoreItem:
    text = request.query[at]
    if request.prompts is not None and text.startswith(request.prompts[at]):
        question, response = _question(request.prompts[at]), text[len(request.prompts[at]) :]
    else:
        question, response = _question_and_response(text, at)
    if request.labels is not None:
        answers: Sequence[str] = request.labels[at]
    else:
        answers = _look_up(question, at, known)
    try:
        segments = segments_of(response)
        return ScoreItem(
            id=str(at),
            question=question[:8_192] or "?",
            answers=tuple(answers),
            segments=segments,
            num_searches=sum(segment.source == "documents" for segment in segments),
        )
    except ValidationError as error:
        problem = error.errors()[0]
        raise InvalidInput(f"query.{at}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None


def _question_and_response(text: str, at: int) -> tuple[str, str]:
    """Split at the FIRST prompt that the text holds: whatever the policy writes comes after it."""
    found = []
    for before, after in _FORMS:
        start = text.find(before)
        end = text.find(after, start + len(before)) if start >= 0 else -1
        if end >= 0:
            found.append((start, text[start + len(before) : end].strip(), text[end + len(after) :]))
    if not found:
        wanted = " or ".join(repr(f"{before}…{after}") for before, after in _FORMS)
        raise InvalidInput(f"query.{at}: holds no prompt of R1-Searcher ({wanted}), and no prompts came with it")
    _, question, response = min(found)
    return question, response


def _question(prompt: str) -> str:
    """For a judge and for messages; the whole prompt where it is of no known form."""
    try:
        return _question_and_response(prompt, 0)[0]
    except InvalidInput:
        return prompt.strip()


def _look_up(question: str, at: int, known: KnownQuestions | None) -> tuple[str, ...]:
    if known is None:
        raise InvalidInput(
            "query: no questions are loaded; set REWARD_DROPIN_QUESTIONS to a JSONL of questions and answers, or send "
            "the answers as labels"
        )
    found = known.by_key.get(look_up_key(question))
    if found is None:
        raise InvalidInput(
            f"query.{at}: the question {question[:200]!r} is not among the {len(known.by_key)} of {known.source} "
            "(REWARD_DROPIN_QUESTIONS)"
        )
    return found.answers


def segments_of(response: str) -> tuple[TextSegment, ...]:
    """A block of documents right after a query is taken for the system's, since nothing says who wrote it."""
    segments: list[TextSegment] = []
    at = 0
    while len(segments) < _MAX_SPLIT and (asked := response.find(_SEARCHED, at)) >= 0:
        start = asked + len(QUERY_CLOSE)
        close = response.find(_READ, start)
        if close < 0:
            break
        end = close + len(_READ)
        segments.append(TextSegment(source="policy", text=response[at:start]))
        segments.append(TextSegment(source="documents", text=response[start:end]))
        at = end
    return (*segments, TextSegment(source="policy", text=response[at:]))
