"""How the command speaks: one console, one form of error, one form of sparkline."""

import logging
from collections.abc import Sequence
from itertools import pairwise

import structlog
from rich.console import Console

from searcher.contracts.errors import SearcherError, UpstreamUnavailable

# A terminal belongs to the person in front of it: clients' notes about retries would tear live tables apart.
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))

console = Console(highlight=False, emoji=False)
errors = Console(stderr=True, highlight=False, emoji=False)

BLOCKS = "▁▂▃▄▅▆▇█"


def print_error(error: SearcherError | OSError) -> None:
    """One line that says what is wrong; for an outage, how to end it."""
    first, *rest = str(error).split("\n")
    errors.print(f"error: {first}", style="bold red", markup=False, soft_wrap=True)
    for line in rest:
        errors.print(line, style="dim", markup=False, soft_wrap=True)
    if isinstance(error, UpstreamUnavailable):
        errors.print("is it running? `searcher status` shows it, `searcher up` starts it", markup=False)


def sparkline(values: Sequence[float], *, width: int, scale: tuple[float, float] | None = None) -> str:
    """At most `width` points, each the mean of an equal share of the values; drawn from the lowest to the highest."""
    if not values:
        return ""
    points = _thinned(values, width)
    low, high = scale or (min(points), max(points))
    if high == low:
        return BLOCKS[0] * len(points)
    return "".join(BLOCKS[round((value - low) / (high - low) * (len(BLOCKS) - 1))] for value in points)


def duration(seconds: float) -> str:
    """7 s, 3:05, 1:02:03"""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _thinned(values: Sequence[float], width: int) -> list[float]:
    if len(values) <= width:
        return list(values)
    edges = [round(index * len(values) / width) for index in range(width + 1)]
    return [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
