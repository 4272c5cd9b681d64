"""Evaluated questions -> means over them, in all and by hop count.

A question's figures are sums of ones and values, so partial results can be added up where they are stored.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from searcher.contracts.report import EvaluatedQuestion, Metrics


def figures(row: EvaluatedQuestion) -> dict[str, float]:
    """What one question adds to the sums that `metrics` divides. The same names in the same order for every row."""
    return {
        "num_questions": 1.0,
        "em": row.em,
        "cover_em": row.cover_em,
        "f1": row.f1,
        "reward": row.reward,
        "searched": float(row.num_searches > 0),
        "searches": float(row.num_searches),
        "format_ok": float(row.format_ok),
        "answered": float(row.answer is not None),
        "evidence_known": float(row.evidence is not None),
        "evidence_found": float(row.evidence is True),
        "tokens": float(row.num_tokens),
    }


def metrics(sums: Mapping[str, float]) -> Metrics:
    """Sums over at least one question -> means."""
    count = sums["num_questions"]
    assert count > 0, sums
    known = sums["evidence_known"]
    return Metrics(
        num_questions=round(count),
        em=sums["em"] / count,
        cover_em=sums["cover_em"] / count,
        f1=sums["f1"] / count,
        reward=sums["reward"] / count,
        search_rate=sums["searched"] / count,
        searches_mean=sums["searches"] / count,
        format_rate=sums["format_ok"] / count,
        answered_rate=sums["answered"] / count,
        evidence_rate=sums["evidence_found"] / known if known else None,
        response_tokens_mean=sums["tokens"] / count,
    )


def summarise(rows: Sequence[EvaluatedQuestion]) -> Metrics:
    table = [figures(row) for row in rows]
    return metrics({name: math.fsum(row[name] for row in table) for name in table[0]})


def summarise_by_hops(rows: Iterable[EvaluatedQuestion]) -> dict[str, Metrics]:
    """Keyed by hop count as text, fewest hops first; questions without one are left out."""
    groups: dict[int, list[EvaluatedQuestion]] = {}
    for row in rows:
        if row.hops is not None:
            groups.setdefault(row.hops, []).append(row)
    return {str(hops): summarise(groups[hops]) for hops in sorted(groups)}
