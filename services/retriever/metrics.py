"""What the retriever measures, and what to do when it moves."""

from collections.abc import Iterator
from pathlib import Path

from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from searcher.servicekit.metrics import QuickHistogram

STAGE_SECONDS = QuickHistogram(
    "searcher_retriever_stage_seconds",
    "Time per stage: queue (per query), encode and search (per batch), fetch (per request). A growing `queue` means "
    "more load than one engine carries: add replicas. A growing `encode` or `search` at the same batch size means that "
    "something else takes the cores.",
    ["stage"],
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25),
)
QUEUE_SECONDS, ENCODE_SECONDS, SEARCH_SECONDS, RERANK_SECONDS, FETCH_SECONDS = (
    STAGE_SECONDS.labels(stage) for stage in ("queue", "encode", "search", "rerank", "fetch")
)
BATCH_QUERIES = QuickHistogram(
    "searcher_retriever_batch_queries",
    "Queries that the engine took at once. Always at the maximum: saturated, add replicas. Always 1: little load.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
)
SEARCHED = Counter(
    "searcher_retriever_searched_queries",
    "Distinct queries that went through an index, by corpus.",
    ["corpus"],
)
CACHE_LOOKUPS = Counter(
    "searcher_retriever_cache_lookups",
    "Queries by what the cache knew: hit, miss, or coalesced (the same query was being searched for somebody else). "
    "Hits falling towards zero in training: raise RETRIEVER_CACHE_ENTRIES.",
    ["outcome"],
)
SHARED_CACHE = Counter(
    "searcher_retriever_shared_cache_calls",
    "Calls of the shared Redis cache: get, put, failed (slower than 5 ms, or gone), resting (not asked, because it "
    "failed a moment ago), garbled (an entry that is not ours). failed and resting rise: Redis is overloaded or gone; "
    "answers come from the index meanwhile.",
    ["outcome"],
)
REJECTED = Counter(
    "searcher_retriever_rejected_queries",
    "Queries not answered, by reason: overloaded (refused, because their deadline could not be kept), expired (waited "
    "past it), cancelled (the caller left). Any overloaded or expired: add replicas, or raise "
    "RETRIEVER_DEADLINE_SECONDS if callers can wait.",
    ["reason"],
)
WAITING = Gauge("searcher_retriever_waiting_queries", "Queries ahead of one that arrives now.")
WAIT_ESTIMATE = Gauge(
    "searcher_retriever_wait_estimate_seconds",
    "Estimated wait of a query that arrives now. What cannot be answered inside its deadline is refused.",
)
SWAPS = Counter(
    "searcher_retriever_index_swaps",
    "Indexes replaced while serving, by outcome (swapped, refused). refused: the log says which file and why; the "
    "older index goes on.",
    ["outcome"],
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


class _Memory(Collector):
    """What the kernel knows about this process, read when somebody asks."""

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        # The fields after the command, which may hold spaces and is in parentheses; majflt is the 12th of all.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        yield CounterMetricFamily(
            "searcher_retriever_major_page_faults",
            "Pages read from disk because they were not in memory. Rising under load: the index does not fit; add "
            "memory, or build a smaller kind of index.",
            value=int(fields[9]),
        )
        memory = GaugeMetricFamily(
            "searcher_retriever_resident_bytes",
            "Memory in use: anon (the process' own; flat when all is well) and file (mapped index pages; the kernel "
            "takes them back when it needs them).",
            labels=["kind"],
        )
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssFile:")):
                name, kilobytes = line.split()[:2]
                memory.add_metric([name[3:-1].lower()], int(kilobytes) * 1024)
        yield memory


if Path("/proc/self/stat").exists():
    REGISTRY.register(_Memory())
