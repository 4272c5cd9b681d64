"""R1-Searcher's tags and document block, character for character.

The tags are plain text, not special tokens of any tokenizer. Generation starts after a pre-filled `<think>`.
"""

import re
from collections.abc import Sequence

from searcher.contracts.search import Passage

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
QUERY_OPEN, QUERY_CLOSE = "<|begin_of_query|>", "<|end_of_query|>"
DOCUMENTS_OPEN, DOCUMENTS_CLOSE = "<|begin_of_documents|>", "<|end_of_documents|>"
TAGS = (
    THINK_OPEN,
    THINK_CLOSE,
    ANSWER_OPEN,
    ANSWER_CLOSE,
    QUERY_OPEN,
    QUERY_CLOSE,
    DOCUMENTS_OPEN,
    DOCUMENTS_CLOSE,
)
_ANY_TAG = re.compile("|".join(re.escape(tag) for tag in TAGS))
_LONGEST_TAG = max(len(tag) for tag in TAGS)


def asked_query(turn: str) -> str | None:
    """The query of a turn that ends in a closed query tag, cleaned as in the original; None if it asks nothing.

    Text after the last opening tag, without double quotes, whitespace collapsed. May be "" (an empty query is a fact
    about the model, and the caller decides what follows).
    """
    before, closed, _ = turn.rpartition(QUERY_CLOSE)
    _, opened, inside = before.rpartition(QUERY_OPEN)
    return " ".join(inside.replace('"', "").split()) if opened and closed else None


def document_block(passages: Sequence[Passage]) -> str:
    """What the system inserts after a query: the separators, the numbered passages, or the literal `None`."""
    lines = "".join(f"({rank}){without_tags(passage.line)}\n" for rank, passage in enumerate(passages, start=1))
    return f"\n\n{DOCUMENTS_OPEN}\n{lines or 'None'}{DOCUMENTS_CLOSE}\n\n"


def without_tags(text: str) -> str:
    """Retrieved text is data: our tags are removed from it and it is put on one line.

    No passage can so speak in the system's voice, not even with a tag inside a tag.
    """
    if _ANY_TAG.search(text) is None:
        return text.replace("\n", " ")
    kept: list[str] = []  # holds no tag before each character, so a new one can only end here: one pass is enough
    for character in text:
        kept.append(character)
        if character == ">":
            end = "".join(kept[-_LONGEST_TAG:])
            del kept[len(kept) - next((len(tag) for tag in TAGS if end.endswith(tag)), 0) :]
    return "".join(kept).replace("\n", " ")
