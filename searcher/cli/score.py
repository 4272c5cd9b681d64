"""A file of finished trajectories -> EM, cover-EM, F1, verdicts and rewards. It asks no service and needs no network.

The file has R1-Searcher's published form: a JSON object a line with `question`, `answer`, `pred_ans`, `gen_text_store`
and perhaps a judge's verdict in `gpt4o_output`. Rules and intervals are those of the reward service and the evaluator:
their code is called here, in this process, so that a file is judged exactly as a training run is. Everything else in
the command meets services on the wire.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from searcher.cli.console import console
from searcher.contracts.errors import InvalidInput
from searcher.contracts.question import Question
from searcher.contracts.score import Score, ScoreItem, TextSegment
from searcher.qa.answer import cover_exact_match, cover_exact_match_strict, exact_match, extract_answer, f1
from searcher.qa.tags import DOCUMENTS_CLOSE, DOCUMENTS_OPEN
from searcher.questions import Row, question_of, rows

ANSWER, TEXT, VERDICT = "pred_ans", "gen_text_store", "gpt4o_output"
_BLOCK_OPEN, _BLOCK_CLOSE = f"\n\n{DOCUMENTS_OPEN}\n", f"{DOCUMENTS_CLOSE}\n\n"
_VERDICTS = {"true": True, "false": False}
RATE = (0.0, 1.0)


@dataclass(frozen=True)
class Trajectory:
    """One line of the file."""

    where: str
    """`file:12`"""
    question: Question
    answer: str | bool
    """Not stripped: the published metrics judge it as it is, so that ` False ` is no boolean. "" for none."""
    text: str | None
    verdict: bool | None
    """None: not judged, or the judge said neither True nor False."""


@dataclass(frozen=True)
class Scored:
    """Figures of a file: one list entry per trajectory, in the file's order."""

    em: list[float]
    cover_em: list[float]
    cover_em_strict: list[float]
    f1: list[float]
    verdicts: list[bool]
    """Of those that were judged."""
    rewards: list[Score] | None
    """None where no rules were asked for."""

    def as_json(self) -> dict[str, Any]:
        figures: dict[str, Any] = {
            "em": mean(self.em),
            "cover_em": mean(self.cover_em),
            "cover_em_strict": mean(self.cover_em_strict),
            "f1": mean(self.f1),
            "n": len(self.em),
        }
        if self.verdicts:
            figures |= {"judge_true": sum(self.verdicts), "judged": len(self.verdicts)}
        if self.rewards is not None:
            figures |= {"reward_mean": mean(self.totals), "negatives": self.negatives}
        return figures

    @property
    def totals(self) -> list[float]:
        return [score.total for score in self.rewards or ()]

    @property
    def negatives(self) -> int:
        return sum(total < 0 for total in self.totals)


def score_file(path: Path, *, rules: str | None, as_json: bool) -> None:
    scored = score(read(path), rules=rules)
    if as_json:
        print(json.dumps(scored.as_json()))
    else:
        console.print(score_table(path.name, scored, rules=rules))


def read(path: Path) -> list[Trajectory]:
    """Raises InvalidInput that names file, line and field."""
    return [trajectory_of(row) for row in rows(path)]


def trajectory_of(row: Row) -> Trajectory:
    text = row.fields.get(TEXT)
    if text is not None and not isinstance(text, str):
        raise InvalidInput(f"{row.where}: {TEXT}: expected text, got {_short(text)}")
    answer = row.fields.get(ANSWER)
    if answer is None:
        if text is None:
            there = ", ".join(map(repr, row.fields))
            raise InvalidInput(f"{row.where}: {ANSWER}: is missing, and so is {TEXT}; the row has {there}")
        answer = extract_answer(text) or ""
    if not isinstance(answer, str | bool | int | float):
        raise InvalidInput(f"{row.where}: {ANSWER}: expected text, got {_short(answer)}")
    return Trajectory(
        where=row.where,
        question=question_of(row),
        answer=answer if isinstance(answer, str | bool) else str(answer),
        text=text,
        verdict=_verdict(row),
    )


def _verdict(row: Row) -> bool | None:
    value = row.fields.get(VERDICT)
    if value is None or isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise InvalidInput(f'{row.where}: {VERDICT}: expected "True" or "False", got {_short(value)}')
    return _VERDICTS.get(value.strip().rstrip(".").lower())


def score(trajectories: Sequence[Trajectory], *, rules: str | None) -> Scored:
    """Raises InvalidInput for unknown rules, and for a row without the text that rules judge."""
    metrics = (exact_match, cover_exact_match, cover_exact_match_strict, f1)
    em, cover_em, strict, f1s = (
        [metric(one.answer, one.question.answers) for one in trajectories] for metric in metrics
    )
    verdicts = [one.verdict for one in trajectories if one.verdict is not None]
    return Scored(em, cover_em, strict, f1s, verdicts, None if rules is None else _rewards(trajectories, rules))


def _rewards(trajectories: Sequence[Trajectory], rules: str) -> list[Score]:
    """Trajectories of one question are one group, as they were in training."""
    from services.reward.engine import score_group
    from services.reward.rules import rules_named

    known = rules_named(rules)
    groups: dict[str, list[int]] = {}
    for place, one in enumerate(trajectories):
        groups.setdefault(one.question.question, []).append(place)
    scores: dict[int, Score] = {}
    for places in groups.values():
        items = [_item(trajectories[place], str(place)) for place in places]
        scores |= zip(places, score_group(items, known), strict=True)
    return [scores[place] for place in range(len(trajectories))]


def _item(one: Trajectory, name: str) -> ScoreItem:
    """The file holds one text; which of it the policy did not write is told by the blocks that the system inserts."""
    if one.text is None:
        raise InvalidInput(f"{one.where}: {TEXT}: is missing; rules judge the whole response")
    try:
        texts = split_at_documents(one.text)
        segments = tuple(
            TextSegment(source="documents" if place % 2 else "policy", text=text) for place, text in enumerate(texts)
        )
        return ScoreItem(
            id=name,
            question=one.question.question,
            answers=one.question.answers,
            segments=segments,
            num_searches=len(texts) // 2,
        )
    except ValueError as error:  # pydantic's: too many blocks, or one too long
        raise InvalidInput(f"{one.where}: {TEXT}: {str(error).splitlines()[2].strip()}") from None


def split_at_documents(text: str) -> list[str]:
    """Policy, documents, policy, …, policy: joined they are the text. A block that is not closed is the policy's."""
    texts, start = [], 0
    while (opened := text.find(_BLOCK_OPEN, start)) >= 0:
        closed = text.find(_BLOCK_CLOSE, opened + len(_BLOCK_OPEN))
        if closed < 0:
            break
        end = closed + len(_BLOCK_CLOSE)
        texts += [text[start:opened], text[opened:end]]
        start = end
    return [*texts, text[start:]]


def score_table(title: str, scored: Scored, *, rules: str | None) -> Table:
    table = Table(title=f"{title}: {len(scored.em):,} trajectories", title_justify="left")
    for column in ("", "mean", "95 % interval"):
        table.add_column(column, justify="left" if not column else "right")
    for name, values in (
        ("EM", scored.em),
        ("cover-EM", scored.cover_em),
        ("cover-EM, words in a row", scored.cover_em_strict),
        ("F1", scored.f1),
    ):
        table.add_row(name, f"{mean(values):.3f}", _interval(values, RATE))
    if scored.verdicts:
        verdicts = [float(verdict) for verdict in scored.verdicts]
        of_all = "" if len(verdicts) == len(scored.em) else f" of {len(verdicts):,} judged"
        table.add_row(
            f"judge ({sum(scored.verdicts):,} right{of_all})", f"{mean(verdicts):.3f}", _interval(verdicts, RATE)
        )
    if scored.rewards is not None:
        table.add_section()
        table.add_row(f"reward, {rules}", f"{mean(scored.totals):.4f}", _interval(scored.totals, None))
        for name in scored.rewards[0].parts:
            table.add_row(f"  {name}", f"{mean([one.parts[name] for one in scored.rewards]):.4f}", "")
        table.add_row("  negative", f"{scored.negatives:,}", "")
    return table


def _interval(values: Sequence[float], bounds: tuple[float, float] | None) -> str:
    import numpy as np

    from services.evaluator.resampling import mean_intervals

    (interval,) = mean_intervals(np.array(values, dtype=np.float64)[:, None], [bounds])
    return "" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:60]}…"
