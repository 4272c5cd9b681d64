"""The trajectories of one group -> their scores. No HTTP here: tests and benchmarks call it directly."""

from collections.abc import Sequence

from searcher.contracts.score import Score, ScoreItem
from searcher.qa.answer import cover_exact_match, exact_match, f1
from services.reward.format_reward import format_errors
from services.reward.response import Response
from services.reward.rules import Rules


def score_group(items: Sequence[ScoreItem], rules: Rules) -> tuple[Score, ...]:
    """One score per item, in order."""
    return tuple(_score(Response(item), rules) for item in items)


def _score(response: Response, rules: Rules) -> Score:
    errors = format_errors(response, rules.checks)
    parts = {name: points(response, frozenset(errors)) for name, points in rules.parts.items()}
    answer, golds = response.answer, response.item.answers
    return Score(
        total=sum(parts.values()),
        parts=parts,
        answer=answer,
        em=0.0 if answer is None else exact_match(answer, golds),
        cover_em=0.0 if answer is None else cover_exact_match(answer, golds),
        f1=0.0 if answer is None else f1(answer, golds),
        format_ok=not errors,
        format_errors=errors,
    )
