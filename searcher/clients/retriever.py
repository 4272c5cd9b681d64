"""Ask the retriever: queries -> passages."""

from collections.abc import Sequence

from searcher.clients.http import ServiceClient
from searcher.contracts.search import Passage, SearchRequest, SearchResponse


class RetrieverClient(ServiceClient):
    service = "retriever"

    async def search(
        self, queries: Sequence[str], *, k: int, corpus: str = "default"
    ) -> tuple[tuple[Passage, ...], ...]:
        """Passages per query, best first. Raises UpstreamUnavailable; never [] for an outage."""
        body = await self.post("/v1/search", SearchRequest(queries=tuple(queries), k=k, corpus=corpus))
        return SearchResponse.model_validate(body).results
