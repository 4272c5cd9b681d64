"""Ask the retriever: queries -> passages."""

from collections.abc import Sequence
from typing import Any

from searcher.clients.http import ServiceClient
from searcher.contracts.search import CorpusInfo, Passage, SearchRequest, SearchResponse


class RetrieverClient(ServiceClient):
    service = "retriever"

    def __init__(self, base_url: str, **settings: Any) -> None:
        super().__init__(base_url, **settings)
        # The service refuses at once what it cannot answer by then, instead of working for nobody.
        self._http.headers["X-Request-Timeout"] = f"{min(self.timeout_seconds, 3_600):g}"

    async def search(
        self, queries: Sequence[str], *, k: int, corpus: str = "default"
    ) -> tuple[tuple[Passage, ...], ...]:
        """Passages per query, best first. Raises UpstreamUnavailable; never [] for an outage."""
        body = await self.post("/v1/search", SearchRequest(queries=tuple(queries), k=k, corpus=corpus))
        return SearchResponse.model_validate(body).results

    async def corpora(self) -> tuple[CorpusInfo, ...]:
        """What can be asked now; a corpus may have another index later."""
        return tuple(CorpusInfo.model_validate(info) for info in await self.get("/v1/corpora"))
