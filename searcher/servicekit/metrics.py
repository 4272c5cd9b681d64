"""The HTTP metrics that every service has (RED: rate, errors, duration). A service's own are in its metrics.py."""

import time
from collections import deque
from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.samples import Sample

_NOTED_AT_MOST = 4_096


class QuickHistogram(Histogram):
    """A histogram for what happens on the way of every request: a value is noted in a tenth of a microsecond, and goes
    into its bucket when somebody reads, or when many were noted."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._noted: deque[float] = deque()

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        assert exemplar is None, "exemplars are not kept"
        self._noted.append(amount)
        if len(self._noted) >= _NOTED_AT_MOST:
            self._enter()

    def time(self) -> "_Stopwatch":  # type: ignore[override]
        return _Stopwatch(self)

    def _enter(self) -> None:
        """Several threads may do so at a time: each value is taken by one of them."""
        while True:
            try:
                amount = self._noted.popleft()
            except IndexError:
                return
            super().observe(amount)

    def _child_samples(self) -> Iterable[Sample]:
        self._enter()
        return super()._child_samples()


class _Stopwatch:
    """Notes the seconds inside of `with`, however it ends."""

    __slots__ = ("_histogram", "_started")

    def __init__(self, histogram: QuickHistogram) -> None:
        self._histogram = histogram

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._histogram.observe(time.perf_counter() - self._started)


REQUESTS = Counter(
    "searcher_http_requests",
    "Requests by outcome. A rising share of code 503 means: too little capacity, or a dependency is down.",
    ["service", "method", "route", "code"],
)
SECONDS = QuickHistogram(
    "searcher_http_request_seconds",
    "Time to the end of the response. Rises before 503s do.",
    ["service", "method", "route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
IN_FLIGHT = Gauge("searcher_http_requests_in_flight", "Requests being served now.", ["service"])


class RequestMetrics:
    """Counts and times requests by route template (never by raw path, which would be unbounded)."""

    def __init__(self, service: str) -> None:
        self.service, self.in_flight = service, 0
        IN_FLIGHT.labels(service).set_function(lambda: self.in_flight)
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def observe(self, method: str, route: str, code: int, seconds: float) -> None:
        counted = self._children.get((method, route, code))
        if counted is None:
            counted = (
                REQUESTS.labels(self.service, method, route, code),
                SECONDS.labels(self.service, method, route),
            )
            self._children[method, route, code] = counted
        counted[0].inc()
        counted[1].observe(seconds)
