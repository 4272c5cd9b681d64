"""How fast the engine is, learnt from its batches, and so how long a query that comes now waits. No threads, no clock
here: whoever asks brings the time."""

from dataclasses import dataclass

_SMOOTHING = 0.2
"""Weight of a full batch in the estimated cost of a query; a smaller batch counts less. A query alone costs more than
one of many, and it is when many wait that the estimate decides."""


@dataclass
class Pace:
    max_batch: int
    seconds_per_query: float = 0.0
    queries_per_batch: float = 1.0
    in_hand: int = 0
    """Queries that were taken and are not yet answered."""
    busy_since: float = 0.0

    def expect(self, seconds_per_query: float) -> None:
        """What a query of a full batch costs, measured elsewhere: the first batches are small and cold."""
        self.seconds_per_query = max(self.seconds_per_query, seconds_per_query)

    def take(self, num_queries: int, now: float) -> None:
        self.in_hand, self.busy_since = num_queries, now

    def learn(self, num_queries: int, now: float) -> None:
        """So many of those in hand were searched together."""
        cost, known = (now - self.busy_since) / num_queries, self.seconds_per_query
        weight = _SMOOTHING * num_queries / self.max_batch
        self.seconds_per_query = known + weight * (cost - known) if known else cost
        self.queries_per_batch += _SMOOTHING * (num_queries - self.queries_per_batch)
        self.in_hand -= num_queries

    def busy_seconds(self, now: float) -> float:
        return now - self.busy_since if self.in_hand else 0.0

    def done_at(self, num_queries: int) -> float:
        """When a batch that was just taken will be answered."""
        return self.busy_since + num_queries * self.seconds_per_query

    def seconds_for(self, num_queries: int) -> float:
        """A query is answered with its whole batch, which others join until it is taken."""
        return max(num_queries, self.queries_per_batch) * self.seconds_per_query

    def seconds_until(self, ahead: int, now: float) -> float:
        """Until it is the turn of who has so many waiting before it."""
        in_hand = 0.0
        if self.in_hand:
            # What is late already may be late as long again; a search that hangs is never done.
            in_hand = abs(self.in_hand * self.seconds_per_query - self.busy_seconds(now))
        return ahead * self.seconds_per_query + in_hand
