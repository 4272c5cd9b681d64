from pathlib import Path

import pytest

from searcher.contracts.errors import InvalidInput
from services.retriever.building.kinds import Machine, _free_memory, choose_kind, factory_of, num_lists, shard_rows_of

GB = 10**9


@pytest.mark.parametrize(
    ("num_passages", "dim", "machine", "kind", "because"),
    [
        (15_779, 384, Machine(16 * GB), "flat", "exact search takes about 2 ms"),
        (500, 384, Machine(16 * GB), "flat", "exact"),
        # 1.5 GB at 10 GB/s is 154 ms, 48 MB of codes 6 ms
        (1_000_000, 384, Machine(16 * GB), "pqfs", "exact search would take about 154 ms"),
        (400_000, 384, Machine(1 * GB), "pqfs", "0.61 GB of vectors do not fit half of the 1 GB"),
        # wiki-18: 64.6 GB of vectors; 2 GB of codes take a quarter of a second
        (21_015_324, 768, Machine(24 * GB), "ivf", "65 GB of vectors do not fit"),
        (21_015_324, 768, Machine(24 * GB, gpu_bytes=(80 * GB,)), "flat", "32 GB of 16-bit vectors fit 1 GPU(s)"),
        (21_015_324, 768, Machine(24 * GB, gpu_bytes=(24 * GB,)), "ivf", "do not fit"),
        (21_015_324, 768, Machine(24 * GB, gpu_bytes=(24 * GB, 24 * GB)), "flat", "2 GPU(s)"),
    ],
)
def test_the_kind_is_chosen_by_size_and_machine_and_says_why(
    num_passages: int, dim: int, machine: Machine, kind: str, because: str
) -> None:
    choice = choose_kind(num_passages, dim, machine)

    assert choice.kind == kind
    assert because in choice.reason


@pytest.mark.parametrize(
    ("kind", "dim", "factory"),
    [
        ("pqfs", 384, "PQ96x4fs"),
        ("pqfs", 27, "PQ3x4fs"),  # of 27 dimensions, 3 codes of 9; 9 codes would be of 3 each, finer than is asked for
        ("rabitq", 768, "RR768,RaBitQfs"),
        ("ivf", 1024, "IVF4096,PQ256x4fs"),
    ],
)
def test_codes_are_half_a_byte_for_four_dimensions(kind: str, dim: int, factory: str) -> None:
    assert factory_of(kind, 1_000_000, dim) == factory  # type: ignore[arg-type]


@pytest.mark.parametrize(("num_passages", "lists"), [(1_000, 16), (1_000_000, 4_096), (21_015_324, 16_384)])
def test_lists_are_a_power_of_two_that_the_corpus_can_fill(num_passages: int, lists: int) -> None:
    assert num_lists(num_passages) == lists


@pytest.mark.parametrize(
    ("kind", "num_passages", "shard_rows"),
    [
        ("pqfs", 49_999, 49_999),
        ("pqfs", 180_000, 45_000),
        ("rabitq", 2_621_440, 262_144),
        ("pqfs", 21_015_324, 328_365),  # a 64th
        ("ivf", 21_015_324, 21_015_324),
    ],
)
def test_codes_are_cut_so_that_all_threads_have_work(kind: str, num_passages: int, shard_rows: int) -> None:
    assert shard_rows_of(kind, num_passages) == shard_rows  # type: ignore[arg-type]


def test_a_corpus_too_small_for_codes_is_refused_with_the_way_out() -> None:
    with pytest.raises(InvalidInput, match="from at least 1,000 passages, and there are 999; use flat"):
        factory_of("pqfs", 999, 384)


@pytest.mark.parametrize(
    ("limit", "expected"), [("max", 8_000 * 1024), (str(5_000 * 1024), 4_000 * 1024), (None, 8_000 * 1024)]
)
def test_free_memory_is_the_containers_where_that_is_less(tmp_path: Path, limit: str | None, expected: int) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  16000 kB\nMemAvailable:  8000 kB\n")
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{3_500 * 1024}\n")
        (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {2_000 * 1024}\nactive_file {500 * 1024}\n")

    assert _free_memory(tmp_path / "meminfo", tmp_path) == expected


def test_free_memory_of_a_container_under_the_older_cgroups(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  16000 kB\nMemAvailable:  8000 kB\n")
    (tmp_path / "memory").mkdir()
    for name, content in (
        ("limit_in_bytes", 5_000 * 1024),
        ("usage_in_bytes", 3_000 * 1024),
        ("stat", f"total_inactive_file {1_500 * 1024}\ntotal_active_file {500 * 1024}"),
    ):
        (tmp_path / "memory" / f"memory.{name}").write_text(f"{content}\n")

    assert _free_memory(tmp_path / "meminfo", tmp_path) == 4_000 * 1024
