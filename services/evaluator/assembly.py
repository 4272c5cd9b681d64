"""The answers of an evaluation that is done -> its report."""

from collections import Counter
from collections.abc import Iterator, Mapping

from searcher.contracts.report import Report
from services.evaluator.chunks import Answered
from services.evaluator.published import published_rows
from services.evaluator.statistics import comparisons, system_reports


def assemble(answered: Answered, *, indexes: Mapping[str, str], judge: str) -> Report:
    """`indexes`: what is behind each corpus now, as far as the retriever tells. `judge`: the model that judges."""
    outline = answered.outline
    now = {name: indexes[name] for name in outline.corpora if name in indexes}
    return Report(
        id=outline.id,
        title=outline.title,
        weights=answered.weights,
        plan=outline.plan,
        rules=outline.rules,
        corpora=now | outline.indexes,
        created_at=answered.created_at.isoformat(timespec="seconds"),
        seconds=answered.seconds,
        systems=system_reports(outline.systems, answered.rows),
        comparisons=comparisons(outline.systems, answered.rows),
        published=published_rows(
            Counter(row.benchmark for row in answered.rows if row.benchmark and row.system == outline.systems[0].name),
            corpora=answered.corpora,
            k=outline.plan.documents_per_search,
            judge=judge if outline.judge else None,
        ),
        missing=tuple(_missing(answered, now)),
        questions=answered.rows,
    )


def _missing(answered: Answered, now: Mapping[str, str]) -> Iterator[str]:
    outline = answered.outline
    if outline.judge and (left := sum(row.judge is None for row in answered.rows)):
        why = f": {answered.not_judged}" if answered.not_judged else ""
        yield (
            f"The judge's verdict on {left} of {len(answered.rows)} answers{why}. "
            f"POST /v1/evaluations/{outline.id}/resume asks for them again."
        )
    for name in outline.corpora:
        before, after = outline.indexes.get(name), now.get(name)
        if before is None and after is None:
            yield f"Which index answered for the corpus {name!r}: the retriever did not tell."
        elif before is not None and after not in (None, before):
            yield f"One index behind all answers: that of the corpus {name!r} was replaced, by {after}."
