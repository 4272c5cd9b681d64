"""A query -> hits, from the first provider that answers."""

import time
from collections.abc import Sequence

from searcher.contracts.errors import BudgetSpent, UpstreamUnavailable
from services.retriever.web.limits import Clock
from services.retriever.web.providers import Hit, SearchProvider, WebQuery
from services.retriever.web.upstream import UpstreamFailed


class Chain:
    def __init__(self, providers: Sequence[SearchProvider], *, clock: Clock = time.monotonic) -> None:
        self._providers, self._clock = providers, clock

    async def hits(self, query: WebQuery, *, until: float) -> tuple[Hit, ...]:
        """Best first; () is "nothing found", and then nobody else is asked.

        Raises UpstreamUnavailable if nobody answers, BudgetSpent if nobody is left who could be paid.
        """
        failures: list[tuple[str, UpstreamFailed | BudgetSpent]] = []
        for position, provider in enumerate(self._providers):
            share = (until - self._clock()) / (len(self._providers) - position)  # the later ones need time too
            try:
                return await provider.search(query, until=self._clock() + share)
            except (UpstreamFailed, BudgetSpent) as failure:
                failures.append((provider.name, failure))
        spent = [failure for _, failure in failures if isinstance(failure, BudgetSpent)]
        if spent and len(spent) == len(failures):
            raise spent[0]
        reasons = "; ".join(f"{name}: {_reason(failure)}" for name, failure in failures)
        raise UpstreamUnavailable(
            f"no search provider answered {query.text[:200]!r}: {reasons}",
            retry_after_seconds=min(failure.retry_after_seconds or 1.0 for _, failure in failures),
        )


def _reason(failure: UpstreamFailed | BudgetSpent) -> str:
    return f"{failure.outcome} ({failure})" if isinstance(failure, UpstreamFailed) else str(failure)
