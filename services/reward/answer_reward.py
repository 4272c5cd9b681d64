"""A response -> what its answer earns, compared with the gold answers."""

from searcher.qa.answer import cover_exact_match, f1
from services.reward.format_reward import published_answer
from services.reward.response import Response


def f1_if_format_right(response: Response, errors: frozenset[str]) -> float:
    """A response without an answer has the format wrong, so it never reaches the F1."""
    return 0.0 if errors or response.answer is None else f1(response.answer, response.item.answers)


def published_f1(response: Response, errors: frozenset[str]) -> float:
    answer = published_answer(response.solution)
    return 0.0 if answer is None else f1(answer, response.item.answers)


def published_cover_em(response: Response, errors: frozenset[str]) -> float:
    """+1 if a gold answer is covered, -1 if not or if there is no answer."""
    answer = published_answer(response.solution)
    return 1.0 if answer is not None and cover_exact_match(answer, response.item.answers) else -1.0
