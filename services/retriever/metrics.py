"""What the retriever measures, and what to do when it moves."""

from prometheus_client import Counter, Gauge, Histogram

STAGE_SECONDS = Histogram(
    "searcher_retriever_stage_seconds",
    "Time per stage: queue (per query), encode and search (per batch), fetch (per request). A growing `queue` means "
    "more load than one engine carries: add replicas. A growing `encode` or `search` at the same batch size means that "
    "something else takes the cores.",
    ["stage"],
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25),
)
BATCH_QUERIES = Histogram(
    "searcher_retriever_batch_queries",
    "Queries that the engine took at once. Always at the maximum: saturated, add replicas. Always 1: little load.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
)
SEARCHED = Counter(
    "searcher_retriever_searched_queries",
    "Distinct queries that went through an index, by corpus.",
    ["corpus"],
)
COALESCED = Counter(
    "searcher_retriever_coalesced_queries",
    "Queries answered by an identical one of the same batch, as the samples of a group ask them.",
)
CACHE_LOOKUPS = Counter(
    "searcher_retriever_cache_lookups",
    "Cache lookups by outcome (hit, miss). Hits falling towards zero in training: raise RETRIEVER_CACHE_ENTRIES.",
    ["outcome"],
)
REJECTED = Counter(
    "searcher_retriever_rejected_queries",
    "Queries not answered, by reason: overloaded (refused on arrival), expired (waited too long), cancelled "
    "(the caller left). Any overloaded or expired: add replicas, or raise RETRIEVER_QUEUE_SECONDS if callers can wait.",
    ["reason"],
)
WAITING = Gauge("searcher_retriever_waiting_queries", "Queries in the queue now.")
WAIT_ESTIMATE = Gauge(
    "searcher_retriever_wait_estimate_seconds",
    "Estimated wait of a query that arrives now; at RETRIEVER_QUEUE_SECONDS new queries are refused.",
)
INDEX_PASSAGES = Gauge(
    "searcher_retriever_index_passages", "Passages of a corpus. Changes only with another index.", ["corpus", "kind"]
)
INDEX_BYTES = Gauge(
    "searcher_retriever_index_bytes",
    "Size of a corpus' files. They are memory-mapped: with less free memory than this, searches read from disk.",
    ["corpus"],
)
BLAS_THRESHOLD = Gauge(
    "searcher_retriever_blas_threshold",
    "Queries x dimensions from which exact search multiplies matrices, as measured at start.",
)
