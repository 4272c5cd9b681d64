"""A group -> what its answers earn, compared with the gold answers or judged by a model."""

from searcher.contracts.score import Verdict
from searcher.qa.answer import cover_exact_match, f1, search_r1_exact_match
from searcher.qa.tags import ANSWER_CLOSE, ANSWER_OPEN
from services.reward.response import Group, Response


def f1_if_format_right(response: Response) -> float:
    """A response without an answer has the format wrong, so it never reaches the F1."""
    return 0.0 if response.errors else response.match.f1


def is_right(response: Response) -> bool:
    """For rules that compare searches: the format is right, and a gold answer is covered by the (so short) answer."""
    return not response.errors and bool(response.match.cover_em)


# ---------------------------------------------------------------------------------------------------------------------
# Judged


def judged_right(group: Group) -> list[float]:
    """1 for what the judge takes for right; nothing for anybody if it left one of them unjudged."""
    if Verdict.NOT_JUDGED in group.verdicts:
        return [0.0] * len(group.responses)
    return [float(verdict is Verdict.RIGHT) for verdict in group.verdicts]


def f1_if_not_judged(group: Group) -> list[float]:
    """The fallback: a group with an unjudged answer earns its F1, all of it, so that its rewards are of one measure."""
    if Verdict.NOT_JUDGED not in group.verdicts:
        return [0.0] * len(group.responses)
    return [f1_if_format_right(response) for response in group.responses]


# ---------------------------------------------------------------------------------------------------------------------
# Published


def published_f1(response: Response) -> float:
    answer = response.published_answer
    return 0.0 if answer is None else f1(answer, response.item.answers)


def published_cover_em(response: Response) -> float:
    """+1 if a gold answer is covered, -1 if not or if there is no answer."""
    answer = response.published_answer
    return 1.0 if answer is not None and cover_exact_match(answer, response.item.answers) else -1.0


def search_r1_em(response: Response) -> float:
    answer = search_r1_answer(response.solution)
    return 0.0 if answer is None else search_r1_exact_match(answer, response.item.answers)


def search_r1_answer(solution: str) -> str | None:
    """What the last match of `<answer>(.*?)</answer>` holds, matches being taken from the left. So unlike above, an
    opening tag within the answer is part of it."""
    answer, at = None, 0
    while (opened := solution.find(ANSWER_OPEN, at)) >= 0:
        start = opened + len(ANSWER_OPEN)
        end = solution.find(ANSWER_CLOSE, start)
        if end < 0:
            break
        answer, at = solution[start:end].strip(), end + len(ANSWER_CLOSE)
    return answer
