"""A histogram that is read late still counts everything, once."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from searcher.servicekit.metrics import QuickHistogram


@pytest.fixture
def registry():
    return CollectorRegistry()


def test_what_was_noted_is_in_its_bucket_when_it_is_read(registry):
    seconds = QuickHistogram("test_seconds", "", ["stage"], buckets=(0.1, 1.0), registry=registry)
    for value in (0.05, 0.5, 5.0):
        seconds.labels("encode").observe(value)
    text = generate_latest(registry).decode()
    assert 'test_seconds_bucket{le="0.1",stage="encode"} 1.0' in text
    assert 'test_seconds_bucket{le="1.0",stage="encode"} 2.0' in text
    assert 'test_seconds_count{stage="encode"} 3.0' in text
    assert 'test_seconds_sum{stage="encode"} 5.55' in text
    assert generate_latest(registry).decode() == text


def test_a_timer_notes_its_time(registry):
    seconds = QuickHistogram("test_seconds", "", registry=registry)
    with seconds.time():
        pass
    assert registry.get_sample_value("test_seconds_count") == 1


def test_what_several_threads_note_while_it_is_read_is_counted_once(registry):
    values = QuickHistogram("test_values", "", buckets=(1.0,), registry=registry)

    def note(_):
        for _ in range(5_000):
            values.observe(1.0)
        return registry.get_sample_value("test_values_count")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(note, range(4)))
    assert registry.get_sample_value("test_values_count") == 20_000
    assert registry.get_sample_value("test_values_sum") == 20_000


def test_it_does_not_grow_while_nobody_reads(registry):
    values = QuickHistogram("test_values", "", registry=registry)
    for _ in range(20_000):
        values.observe(1.0)
    assert len(values._noted) < 5_000
