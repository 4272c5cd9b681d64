"""What all benchmarks share: medians of alternating rounds, a table for people, one JSON line for machines."""

import json
import socket
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """Of at least one value; the nearest rank."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(len(ranked) * percent / 100))]


def alternate(rounds: int, *measures: Callable[[], Any]) -> list[list[Any]]:
    """What each measure gave, per round: A B A B …, so that a neighbour on the machine disturbs both alike."""
    results: list[list[Any]] = [[] for _ in measures]
    for _ in range(rounds):
        for found, measure in zip(results, measures, strict=True):
            found.append(measure())
    return results


def table(rows: Sequence[Sequence[object]]) -> None:
    """The first row is the head."""
    cells = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def report(name: str, *, ratio: float, goal: float, **measured: object) -> None:
    """The last line of a benchmark."""
    print(json.dumps({"name": name, "ratio": round(ratio, 4), "goal": goal, **measured}))


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
