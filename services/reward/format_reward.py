"""A response -> the format checks that it fails, and what that costs.

Two families: ours judge the policy's own turns; the published ones judge the whole text, retrieved documents included.
"""

import re

from searcher.qa.tags import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    DOCUMENTS_CLOSE,
    DOCUMENTS_OPEN,
    QUERY_CLOSE,
    QUERY_OPEN,
    THINK_CLOSE,
    THINK_OPEN,
)
from services.reward.response import Check, Points, Response, each

# ---------------------------------------------------------------------------------------------------------------------
# What an error costs, or its absence earns


def penalty(points: float) -> Points:
    """Once, however many checks fail."""
    return each(lambda response: points if response.errors else 0.0)


def bonus(points: float, *, unless: frozenset[str] | None = None) -> Points:
    """Unless one of the named checks fails; None names all."""

    def earned(response: Response) -> float:
        errors = response.errors if unless is None else unless.intersection(response.errors)
        return 0.0 if errors else points

    return each(earned)


# ---------------------------------------------------------------------------------------------------------------------
# Ours: think, query | documents | think, query | documents | think </think> <answer> … </answer>, and nothing else

_FAKE_PROMPT = re.compile(r"^[ \t]*(?:User|Assistant):|<\|im_start\|>|<\|start_header_id\|>", re.MULTILINE)
_MARKS_OF_A_PROMPT = ("User:", "Assistant:", "<|im_start|>", "<|start_header_id|>")
"""One of them is in all that the expression finds; they are quicker to look for."""


def _asks_only_where_documents_follow(response: Response) -> bool:
    *asking, last = response.turns
    return all(_ends_in_one_query(turn) for turn in asking) and QUERY_OPEN not in last and QUERY_CLOSE not in last


def _ends_in_one_query(turn: str) -> bool:
    return turn.count(QUERY_OPEN) == turn.count(QUERY_CLOSE) == 1 and turn.rstrip().endswith(QUERY_CLOSE)


def _wrote_no_document_tags(response: Response) -> bool:
    return DOCUMENTS_OPEN not in response.own_text and DOCUMENTS_CLOSE not in response.own_text


def _closed_its_thought_once(response: Response) -> bool:
    return response.own_text.count(THINK_OPEN) == 0 and response.own_text.count(THINK_CLOSE) == 1


def _answered(response: Response) -> bool:
    return response.answer is not None


def _answered_once(response: Response) -> bool:
    return response.own_text.count(ANSWER_OPEN) == response.own_text.count(ANSWER_CLOSE) == 1


def _ended_with_the_answer(response: Response) -> bool:
    _, _, after_thought = response.turns[-1].partition(THINK_CLOSE)
    conclusion = after_thought.strip()
    return conclusion.startswith(ANSWER_OPEN) and conclusion.endswith(ANSWER_CLOSE)


def _answered_briefly(response: Response) -> bool:
    """Up to 10 words, or three times the longest gold answer: a gold answer itself is never too long."""
    longest = max(_num_words(gold) for gold in response.golds)
    return response.answer is None or _num_words(response.answer) <= max(10, 3 * longest)


def _spoke_for_itself_only(response: Response) -> bool:
    text = response.own_text
    return not any(mark in text for mark in _MARKS_OF_A_PROMPT) or _FAKE_PROMPT.search(text) is None


OWN_TEXT_CHECKS = (
    Check("query_tags", _asks_only_where_documents_follow),
    Check("document_tags", _wrote_no_document_tags),
    Check("think_tags", _closed_its_thought_once),
    Check("no_answer", _answered),
    Check("answer_tags", _answered_once),
    Check("answer_place", _ended_with_the_answer),
    Check("answer_length", _answered_briefly),
    Check("fake_prompt", _spoke_for_itself_only),
)

# ---------------------------------------------------------------------------------------------------------------------
# Published: the whole text is the solution, whoever wrote it

_CHINESE = re.compile("[\u4e00-\u9fff]")


def published_tag_counts(response: Response) -> tuple[int, ...]:
    """Must all be equal, and are the number of searches then."""
    tags = response.published_tags
    numbered = tags[f"{DOCUMENTS_OPEN}\n(1)"]
    on_line = tags[f"{DOCUMENTS_OPEN}\n"] + numbered
    ended = tags[f"{DOCUMENTS_CLOSE}\n\n"]
    return (
        on_line,
        ended,
        tags[QUERY_OPEN],
        tags[QUERY_CLOSE],
        tags[DOCUMENTS_OPEN] + on_line,
        tags[DOCUMENTS_CLOSE] + ended,
        numbered,
    )


def _tag_counts(response: Response) -> bool:
    return len(set(published_tag_counts(response))) == 1


def _think_tags(response: Response) -> bool:
    return response.published_tags[THINK_OPEN] == 0 and response.published_tags[THINK_CLOSE] == 1


def _answer_tags(response: Response) -> bool:
    return response.published_tags[ANSWER_OPEN] == response.published_tags[ANSWER_CLOSE] == 1


def _no_assistant(response: Response) -> bool:
    return "Assistant" not in response.solution and "assistant" not in response.solution


def _no_search_in_answer(response: Response) -> bool:
    answer = response.published_answer or ""
    return "begin_of_query" not in answer and "begin_of_documents" not in answer


def _answer_of_ten_words(response: Response) -> bool:
    return _num_words(response.published_answer or "") <= 10


def _no_chinese(response: Response) -> bool:
    solution = response.solution
    return solution.isascii() or _CHINESE.search(without_document_blocks(solution)) is None


def without_document_blocks(text: str) -> str:
    """`re.sub(open + '.*?' + close, '', text)`, but linear however many blocks are opened and not closed."""
    *closed, rest = text.split(DOCUMENTS_CLOSE)
    kept = []
    for piece in closed:
        before, opened, _ = piece.partition(DOCUMENTS_OPEN)
        kept.append(before if opened else piece + DOCUMENTS_CLOSE)
    return "".join((*kept, rest))


STAGE1_CHECKS = (
    Check("tag_counts", _tag_counts),
    Check("think_tags", _think_tags),
    Check("answer_tags", _answer_tags),
)
LLAMA_STAGE2_CHECKS = (*STAGE1_CHECKS, Check("chinese", _no_chinese))
QWEN_CHECKS = (
    *LLAMA_STAGE2_CHECKS,
    Check("assistant", _no_assistant),
    Check("search_in_answer", _no_search_in_answer),
    Check("answer_length", _answer_of_ten_words),
)
SEARCH_R1_CHECKS = (Check("no_answer", _answered),)


def _num_words(text: str) -> int:
    return len(text.split())
