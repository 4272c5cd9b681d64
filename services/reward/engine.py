"""The trajectories of one group -> their scores. No HTTP here: tests and benchmarks call it directly."""

import math
from collections.abc import Sequence

from searcher.contracts.errors import InvalidInput, SearcherError
from searcher.contracts.score import Score, ScoreItem, Verdict
from services.reward.response import Group, Points, Response
from services.reward.rules import Rules


def score_group(items: Sequence[ScoreItem], rules: Rules) -> tuple[Score, ...]:
    """One score per item, in order, by rules that ask nobody."""
    return score(group_of(items, rules), rules)


def group_of(items: Sequence[ScoreItem], rules: Rules) -> Group:
    """Raises InvalidInput where rules that compare are given several questions."""
    for at, item in enumerate(items if rules.compares else ()):
        if item.question != items[0].question:
            raise InvalidInput(
                f"items.{at}.question: differs from items.0.question, but the rules {rules.name!r} compare the "
                "responses to one question; send a request per question"
            )
    return Group(tuple(Response(item, rules.checks) for item in items))


def score(group: Group, rules: Rules) -> tuple[Score, ...]:
    """One score per response, in order. Raises SearcherError, with their names, for a part that fails (ours do not)."""
    points = {name: _points(part, group, f"rules {rules.name!r}, part {name!r}") for name, part in rules.parts.items()}
    verdicts = group.verdicts or (None,) * len(group.responses)
    return tuple(
        _score(response, {name: earned[at] for name, earned in points.items()}, verdicts[at])
        for at, response in enumerate(group.responses)
    )


def _points(part: Points, group: Group, name: str) -> Sequence[float]:
    try:
        points = [float(point) for point in part(group)]
    except Exception as error:
        raise SearcherError(f"{name}: {type(error).__name__}: {error}") from error
    if len(points) != len(group.responses):
        raise SearcherError(f"{name}: gave {len(points)} numbers for {len(group.responses)} responses")
    for response, point in zip(group.responses, points, strict=True):
        if not math.isfinite(point):
            raise SearcherError(f"{name}: gave {point} for {response.item.id!r}")
    return points


def _score(response: Response, parts: dict[str, float], verdict: Verdict | None) -> Score:
    match = response.match
    return Score(
        total=sum(parts.values()),
        parts=parts,
        answer=response.answer,
        em=match.em,
        cover_em=match.cover_em,
        f1=match.f1,
        format_ok=not response.errors,
        format_errors=response.errors,
        judge=verdict,
    )
