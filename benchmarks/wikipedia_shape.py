"""Codes of 21 million vectors of 768 dimensions, the shape of the Wikipedia dump of search-RL papers, within 8 GiB.

    python -m benchmarks.wikipedia_shape [--quick] [--scratch build]

The codes are random bytes in the files that `index build` writes, about 2 GB a kind, removed afterwards; training and
encoding 21 million passages is not what is measured here, and random codes have no recall: the candidates per result
and the lists per query are set here, where a build would tune them, and latency grows with both. The vectors that
decide between candidates are a sparse file of their full length, 64.6 GB, all zero: what is read of it is read from
memory, so a disk's share of the latency is not in the numbers. A process of its own opens the index as the service
does and answers one query at a time; nothing limits its memory, and its peak is compared with 8 GiB.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import median, percentile, report, table
from services.retriever.building.kinds import VectorKind, factory_of, num_lists, shard_rows_of
from services.retriever.index.quantised import Quantised, train_codes

NUM_VECTORS, DIM = 21_015_324, 768
LIMIT_BYTES = 8 * 1024**3
KINDS: tuple[VectorKind, ...] = ("pqfs", "ivf")
_CANDIDATES, _NUM_PROBES = 20, 64
_PACKED_ROWS = 32
"""Fast-scan codes lie in blocks of so many rows."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the vectors")
    parser.add_argument("--scratch", type=Path, default=Path("build"))
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)  # kind, folder
    options = parser.parse_args()
    if options.serve:
        print(json.dumps(serve(options.serve[0], Path(options.serve[1]))))
        return
    num_vectors = NUM_VECTORS // 20 if options.quick else NUM_VECTORS
    folder = options.scratch / "wikipedia-shape"
    rows: list[tuple[object, ...]] = [("kind", "codes GB", "open s", "p50 ms", "p99 ms", "peak RSS GB", "anonymous GB")]
    found = {}
    for kind in KINDS:
        try:
            code_bytes = write(kind, num_vectors, folder)
            command = [sys.executable, "-m", "benchmarks.wikipedia_shape", "--serve", kind, str(folder)]
            served = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        found[kind] = {"code_bytes": code_bytes, **served}
        times = (served["p50_ms"], served["p99_ms"])
        memory = (served["peak_bytes"] / 1e9, served["anonymous_bytes"] / 1e9)
        rows.append((kind, code_bytes / 1e9, served["open_seconds"], *times, *memory))
    table(rows)
    report(
        "wikipedia_shape",
        ratio=max(float(kind["peak_bytes"]) for kind in found.values()) / LIMIT_BYTES,
        goal=1.0,
        vectors=num_vectors,
        dim=DIM,
        candidates=_CANDIDATES,
        num_probes=_NUM_PROBES,
        kinds=found,
    )


def write(kind: VectorKind, num_vectors: int, folder: Path) -> int:
    """The files of an index; returns the bytes of its codes."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "codes").mkdir(parents=True)
    random = np.random.default_rng(0)
    if kind == "ivf":
        write_lists(num_vectors, folder / "codes" / "000.faiss", random)
    else:
        trained = train_codes(factory_of(kind, num_vectors, DIM), sample(random))
        rows = shard_rows_of(kind, num_vectors)
        for number, start in enumerate(range(0, num_vectors, rows)):
            write_shard(trained, min(rows, num_vectors - start), folder / "codes" / f"{number:03}.faiss", random)
    header = np.lib.format.open_memmap(
        folder / "vectors.npy", mode="w+", dtype=np.float32, shape=(num_vectors, DIM)
    )  # sparse
    del header
    return sum(path.stat().st_size for path in (folder / "codes").iterdir())


def sample(random: np.random.Generator) -> Any:
    return random.standard_normal((4_096, DIM), dtype=np.float32)


def write_shard(trained: Any, num_rows: int, path: Path, random: np.random.Generator) -> None:
    import faiss

    shard = faiss.deserialize_index(faiss.serialize_index(trained))
    packed_rows = -(-num_rows // _PACKED_ROWS) * _PACKED_ROWS
    num_bytes = packed_rows * shard.M2 // 2
    shard.codes.resize(num_bytes)
    faiss.rev_swig_ptr(shard.codes.get(), num_bytes)[:] = np.frombuffer(random.bytes(num_bytes), dtype=np.uint8)
    shard.ntotal, shard.ntotal2 = num_rows, packed_rows
    faiss.write_index(shard, os.fspath(path))


def write_lists(num_vectors: int, path: Path, random: np.random.Generator) -> None:
    """Rows dealt out to the lists evenly; centroids are random, so a query reads as many rows as in a real index."""
    import faiss

    lists = num_lists(num_vectors)
    codes = train_codes(factory_of("pqfs", num_vectors, DIM), sample(random))
    quantizer = faiss.IndexFlatIP(DIM)
    quantizer.add(random.standard_normal((lists, DIM), dtype=np.float32))
    index = faiss.IndexIVFPQFastScan(quantizer, DIM, lists, codes.pq.M, 4, faiss.METRIC_INNER_PRODUCT)
    index.pq, index.is_trained = codes.pq, True
    inverted = faiss.downcast_InvertedLists(index.invlists)
    for number, rows in enumerate(np.array_split(np.arange(num_vectors), lists)):
        inverted.resize(number, len(rows))
        num_bytes = -(-len(rows) // _PACKED_ROWS) * inverted.block_size
        content = np.frombuffer(random.bytes(num_bytes), dtype=np.uint8)
        faiss.rev_swig_ptr(inverted.get_codes(number), num_bytes)[:] = content
        faiss.rev_swig_ptr(inverted.get_ids(number), len(rows))[:] = rows
    index.ntotal = num_vectors
    faiss.write_index(index, os.fspath(path))


def serve(kind: str, folder: Path) -> dict[str, float]:
    started = time.perf_counter()
    vectors_ND = np.load(folder / "vectors.npy", mmap_mode="r")
    index = Quantised(
        folder / "codes",
        vectors_ND,
        candidates=_CANDIDATES,
        num_probes=_NUM_PROBES if kind == "ivf" else None,
        num_threads=len(os.sched_getaffinity(0)),
    )
    open_seconds = time.perf_counter() - started
    queries_QD = np.random.default_rng(1).standard_normal((60, DIM), dtype=np.float32)
    times = []
    for query_1D in np.split(queries_QD, len(queries_QD)):
        started = time.perf_counter()
        _, rows_QK = index.search(query_1D, 10)
        times.append((time.perf_counter() - started) * 1e3)
        assert len(set(rows_QK[0].tolist())) == 10
    memory = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "open_seconds": round(open_seconds, 2),
        "p50_ms": round(median(times[5:]), 2),
        "p99_ms": round(percentile(times[5:], 99), 2),
        "peak_bytes": int(memory["VmHWM"].split()[0]) * 1024,
        "anonymous_bytes": int(memory["RssAnon"].split()[0]) * 1024,
    }


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
