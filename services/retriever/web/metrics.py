"""What online search measures, and what to do when it moves."""

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25)

REQUESTS = Counter(
    "searcher_retriever_web_requests",
    "Requests to a provider or the summariser, by outcome. rate_limited: lower RETRIEVER_WEB_REQUESTS_PER_SECOND. "
    "out_of_credit, refused: look at the account and its key. failed, timeout, unreachable, malformed: their outage.",
    ["provider", "outcome"],
)
REQUEST_SECONDS = Histogram(
    "searcher_retriever_web_request_seconds",
    "Time until a provider or the summariser answered or failed, one attempt. Near RETRIEVER_WEB_PROVIDER_SECONDS: "
    "put another provider first.",
    ["provider"],
    buckets=_SECONDS,
)
CHARGED_USD = Counter(
    "searcher_retriever_web_charged_usd",
    "Money this process spent, by provider, at the prices of RETRIEVER_WEB_USD_PER_REQUEST.",
    ["provider"],
)
SPENT_USD = Gauge(
    "searcher_retriever_web_spent_usd", "Money the run has spent, as this process last saw it; restarts included."
)
BUDGET_LEFT_USD = Gauge(
    "searcher_retriever_web_budget_left_usd",
    "What the run may still spend. At 0 paid providers are not asked: raise RETRIEVER_WEB_BUDGET_USD.",
)
BREAKER_OPEN = Gauge(
    "searcher_retriever_web_breaker_open",
    "1 while a provider is left alone after failures. Watch searcher_retriever_web_requests for the reason.",
    ["provider"],
)
CASSETTE_LOOKUPS = Counter(
    "searcher_retriever_web_cassette_lookups",
    "What was asked of the cassette, by kind (hits, page, summary) and outcome (played, recorded, missing). "
    "missing rises in replay: this run asks what the recorded one did not.",
    ["kind", "outcome"],
)
COALESCED = Counter(
    "searcher_retriever_web_coalesced",
    "Asked while the same was being asked already, by kind; answered by that one.",
    ["kind"],
)
PAGES = Counter(
    "searcher_retriever_web_pages",
    "Pages by outcome: read, or why the snippet stands in for the text (status, unreachable, timeout, garbled, "
    "too_large, too_hard, content_type, redirects, refused, no_text).",
    ["outcome"],
)
PAGE_SECONDS = Histogram("searcher_retriever_web_page_seconds", "Time to fetch and read one page.", buckets=_SECONDS)
REFUSED_ADDRESSES = Counter(
    "searcher_retriever_web_refused_addresses",
    "URLs not fetched because of where they lead, by reason. More than a few loopback, private, link_local or "
    "metadata: a page is trying to look inside this network.",
    ["reason"],
)
