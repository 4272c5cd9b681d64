"""A response's text -> HTML in which thinking, queries, documents and answers look different.

Both the policy and the passages are untrusted: everything is escaped, and only our own spans are markup.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from html import escape

from searcher.qa.tags import ANSWER_CLOSE, ANSWER_OPEN, DOCUMENTS_CLOSE, DOCUMENTS_OPEN, QUERY_CLOSE, QUERY_OPEN, TAGS


class Kind(StrEnum):
    THINK = "think"
    QUERY = "query"
    DOCUMENTS = "documents"
    ANSWER = "answer"


@dataclass(frozen=True)
class Piece:
    kind: Kind
    text: str


_OPENS = {QUERY_OPEN: Kind.QUERY, DOCUMENTS_OPEN: Kind.DOCUMENTS, ANSWER_OPEN: Kind.ANSWER}
_CLOSES = {QUERY_CLOSE: Kind.QUERY, DOCUMENTS_CLOSE: Kind.DOCUMENTS, ANSWER_CLOSE: Kind.ANSWER}
_TAG = re.compile("(" + "|".join(re.escape(tag) for tag in TAGS) + ")")


def pieces(response: str) -> list[Piece]:
    """Split by tags, the tags included; joined, the pieces give the response. A tag that is never closed reaches
    up to the next one that opens."""
    found: list[Piece] = []
    kind, text = Kind.THINK, ""
    for part in _TAG.split(response):
        if part in _OPENS:
            found.append(Piece(kind, text))
            kind, text = _OPENS[part], part
        elif kind is _CLOSES.get(part):
            found.append(Piece(kind, text + part))
            kind, text = Kind.THINK, ""
        else:
            text += part
    return [piece for piece in [*found, Piece(kind, text)] if piece.text]


def mark_up(response: str) -> str:
    """Spans of class `think`, `query`, `documents` and `answer`, with the tags in `<i>`."""
    return "".join(_spans(pieces(response)))


def _spans(found: list[Piece]) -> Iterator[str]:
    on_new_line = True
    for piece in found:
        if piece.kind is Kind.DOCUMENTS:
            lines = "".join(f"<span>{_escaped(line)}</span>" for line in piece.text.splitlines() if line.strip())
            yield f'<span class="documents">{lines}</span>'
        elif text := piece.text.strip("\n").lstrip(" " if on_new_line else ""):
            yield f'<span class="{piece.kind.value}">{_escaped(text)}</span>'
        on_new_line = piece.kind is Kind.DOCUMENTS


def _escaped(text: str) -> str:
    return "".join(f"<i>{escape(part)}</i>" if part in TAGS else escape(part) for part in _TAG.split(text))
