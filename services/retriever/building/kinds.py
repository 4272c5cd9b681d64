"""A corpus' size and a machine -> the kind of vector index that serves it best, and why.

Exact search where it is fast enough and fits; short codes where it is not; lists of codes where even those are too many
to read for every query. The rates are of two cores of a plain server, and on the safe side.
"""

import math
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from searcher.contracts.errors import InvalidInput

VectorKind = Literal["flat", "fp16", "pqfs", "rabitq", "ivf"]
VECTOR_KINDS: tuple[VectorKind, ...] = ("flat", "fp16", "pqfs", "rabitq", "ivf")

MIN_QUANTISED_PASSAGES = 1_000
"""Codes are learnt from the corpus; a smaller one has too little to learn from, and `flat` is instant."""
_READ_BYTES_PER_SECOND = 10e9
_CODES_BYTES_PER_SECOND = 8e9
_PATIENCE_SECONDS = 0.1
"""What one query may take before the next kind is better."""
_SHARE_OF_MEMORY = 0.5
"""The rest is the encoder's, the passages' and the neighbours'."""
_GPU_SCRATCH_BYTES = 2 * 1024**3
_DIMENSIONS_PER_CODE = 4
_MIN_SHARDED_PASSAGES = 50_000
_SHARD_ROWS = 262_144
_MIN_SHARDS, _MAX_SHARDS = 4, 64


@dataclass(frozen=True)
class Machine:
    memory_bytes: int
    """That is free now, or that the container may still take."""
    gpu_bytes: tuple[int, ...] = ()
    """Memory of each GPU that faiss can use."""


@dataclass(frozen=True)
class Choice:
    kind: VectorKind
    reason: str


def choose_kind(num_passages: int, dim: int, machine: Machine) -> Choice:
    flat, half = num_passages * dim * 4, num_passages * dim * 2
    codes = num_passages * math.ceil(dim / _DIMENSIONS_PER_CODE / 2)
    memory = machine.memory_bytes * _SHARE_OF_MEMORY
    gpu = sum(max(0, num_bytes - _GPU_SCRATCH_BYTES) for num_bytes in machine.gpu_bytes)
    if half <= gpu:
        return Choice(
            "flat", f"{_gb(half)} of 16-bit vectors fit {len(machine.gpu_bytes)} GPU(s), which search them all"
        )
    if num_passages < MIN_QUANTISED_PASSAGES or (flat <= memory and _seconds(flat) <= _PATIENCE_SECONDS):
        return Choice("flat", f"{_gb(flat)} of vectors: exact search takes about {_seconds(flat) * 1e3:.0f} ms a query")
    why_not_flat = (
        f"{_gb(flat)} of vectors do not fit half of the {_gb(machine.memory_bytes)} that are free"
        if flat > memory
        else f"exact search would take about {_seconds(flat) * 1e3:.0f} ms a query"
    )
    seconds = codes / _CODES_BYTES_PER_SECOND
    if seconds <= _PATIENCE_SECONDS:
        return Choice("pqfs", f"{why_not_flat}; {_gb(codes)} of codes take about {seconds * 1e3:.0f} ms")
    return Choice("ivf", f"{why_not_flat}, and reading {_gb(codes)} of codes about {seconds * 1e3:.0f} ms")


def _seconds(num_bytes: int) -> float:
    return num_bytes / _READ_BYTES_PER_SECOND


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2g} GB"


def factory_of(kind: VectorKind, num_passages: int, dim: int) -> str:
    """faiss' name for the codes of a quantised kind. Raises InvalidInput for a corpus that is too small for codes."""
    if num_passages < MIN_QUANTISED_PASSAGES:
        raise InvalidInput(
            f"kind: {kind} learns its codes from at least {MIN_QUANTISED_PASSAGES:,} passages, and there are "
            f"{num_passages:,}; use flat"
        )
    codes = f"PQ{_num_codes(dim)}x4fs"
    if kind == "pqfs":
        return codes
    if kind == "rabitq":
        return f"RR{dim},RaBitQfs"  # the rotation spreads what is known over all dimensions, one bit of each is kept
    assert kind == "ivf", kind
    return f"IVF{num_lists(num_passages)},{codes}"


def _num_codes(dim: int) -> int:
    """The largest divisor of the dimensions that leaves a code at least four of them."""
    return max(n for n in range(1, max(1, dim // _DIMENSIONS_PER_CODE) + 1) if dim % n == 0)


def num_lists(num_passages: int) -> int:
    """About four times the root, a power of two, and never so many that a list is learnt from less than 39 vectors."""
    lists = 1 << round(math.log2(4 * math.sqrt(num_passages)))
    return min(lists, 1 << int(math.log2(num_passages / 39)))


def shard_rows_of(kind: VectorKind, num_passages: int) -> int:
    """Rows per file of codes: enough files for all threads to have work, few enough that asking each costs little.
    Lists of codes are shared among threads by faiss itself."""
    if kind == "ivf" or num_passages < _MIN_SHARDED_PASSAGES:
        return num_passages
    num_shards = min(_MAX_SHARDS, max(_MIN_SHARDS, math.ceil(num_passages / _SHARD_ROWS)))
    return math.ceil(num_passages / num_shards)


# ---------------------------------------------------------------------------------------------------------------------
# This machine


def this_machine() -> Machine:
    return Machine(memory_bytes=_free_memory(), gpu_bytes=_gpu_memory())


_CGROUP_FILES = {
    "v2": ("memory.max", "memory.current", "memory.stat", ("inactive_file", "active_file")),
    "v1": (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        ("total_inactive_file", "total_active_file"),
    ),
}
"""Limit, use, its parts, and those of them that are files' pages."""


def _free_memory(proc: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Of the machine, or of the container if that may take less."""
    lines = dict(line.split(":", 1) for line in proc.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    for limit_file, used_file, parts_file, of_files in _CGROUP_FILES.values():
        try:
            limit, used = (cgroup / limit_file).read_text().strip(), int((cgroup / used_file).read_text())
            parts = dict(line.split() for line in (cgroup / parts_file).read_text().splitlines())
        except OSError:
            continue
        if limit != "max":
            # Pages of files, such as those that a build writes, go as soon as somebody needs the room.
            in_use = used - sum(int(parts.get(name, 0)) for name in of_files)
            free = max(0, min(free, int(limit) - in_use))
    return free


def _gpu_memory() -> tuple[int, ...]:
    from services.retriever.index.gpu import num_gpus

    if not num_gpus():
        return ()
    asked = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(int(line) * 1024**2 for line in answer.split())
