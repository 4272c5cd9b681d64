"""Quantised search on real embeddings and real questions: recall, resident memory and latency against exact search.

    python -m benchmarks.quantised_index CORPUS… --queries QUESTIONS [--embeddings build/embeddings] [--quick]

Takes the passages of CORPUS whose vectors are in the embedding cache, and no others:

    python -m services.retriever.building.embeddings CORPUS… --encoder minilm --into build/embeddings

encodes them ahead and goes on where it was. Each kind is built and tuned as `index build` does it, on stretches of its
own passages; recall@10 is then measured on the questions, which tuning never saw. Memory is what a process of its own
holds in anonymous pages once it has searched, less what the same process holds before it opens the index.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.measure import alternate, median, report, table
from services.retriever.building.build import training_sample
from services.retriever.building.corpus import read_passages
from services.retriever.building.embeddings import EmbeddingCache, in_blocks
from services.retriever.building.kinds import VectorKind, factory_of, num_lists, shard_rows_of
from services.retriever.building.recall import Settings, Trial, read_questions, tuned
from services.retriever.encoders.export import encoder_folder
from services.retriever.encoders.opening import open_encoder
from services.retriever.encoders.protocol import Encoder, Vectors
from services.retriever.index.exact import Flat
from services.retriever.index.passages import searchable_text
from services.retriever.index.quantised import Quantised, train_codes, write_codes

KINDS: tuple[VectorKind, ...] = ("pqfs", "rabitq", "ivf")
RECALL_GOAL, MEMORY_GOAL = 0.98, 20.0
_TUNED_TO = 0.99
_TRIAL_QUERIES, _STRETCH_WORDS = 256, 12
_BATCHES = (1, 16, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path, nargs="*", metavar="CORPUS")
    parser.add_argument("--queries", type=Path)
    parser.add_argument("--embeddings", type=Path, default=Path("build/embeddings"))
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--encoder-cache", type=Path, default=Path("build/encoders"))
    parser.add_argument("--quick", action="store_true", help="at most 20,000 passages, fewer rounds")
    parser.add_argument("--memory-of", nargs=4, help=argparse.SUPPRESS)  # kind, vectors, codes, queries
    options = parser.parse_args()
    if options.memory_of:
        print(anonymous_bytes(*options.memory_of))
        return
    encoder = open_encoder(encoder_folder(options.encoder, options.encoder_cache), num_threads=2)
    options.embeddings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.embeddings) as scratch:
        run(options, encoder, Path(scratch))


def run(options: argparse.Namespace, encoder: Encoder, scratch: Path) -> None:
    rounds = 3 if options.quick else 7
    vectors_at = scratch / "vectors.npy"
    stretches, of = write_known_vectors(options, encoder, vectors_at)
    vectors_ND = np.load(vectors_at, mmap_mode="r")
    questions_QD = encoder.encode_queries(read_questions(options.queries, 512))
    np.save(scratch / "queries.npy", questions_QD)
    tuning = Trial.of(encoder.encode_queries(stretches), vectors_ND, of_questions=False)
    test = Trial.of(questions_QD, vectors_ND, of_questions=True)
    threads = len(os.sched_getaffinity(0))
    flat = Flat(vectors_ND, num_threads=threads)

    rows: list[tuple[object, ...]] = [
        ("kind", "candidates", "probes", "recall@10", "memory MB", "flat ÷ it", *(f"{q}q: flat ÷ it" for q in _BATCHES))
    ]
    results: dict[str, dict[str, object]] = {}
    recalls: dict[str, float] = {}
    for kind in KINDS[:1] if options.quick else KINDS:
        codes_at = scratch / kind
        index, settings = built(kind, vectors_ND, tuning, codes_at, threads)
        recall = recalls[kind] = test.recall(index)
        memory = memory_of(kind, vectors_at, codes_at, scratch / "queries.npy")
        times = {
            q: alternate(rounds, *(lambda s=s, q=q: ms(s, questions_QD[:q]) for s in (flat, index))) for q in _BATCHES
        }
        speed = {q: median(exact) / median(quantised) for q, (exact, quantised) in times.items()}
        share = vectors_ND.nbytes / memory
        rows.append(
            (kind, settings.candidates, settings.num_probes or "-", recall, memory / 1e6, share, *speed.values())
        )
        results[kind] = {
            "recall": round(recall, 4),
            "memory_ratio": round(share, 1),
            "latency_ratios": {q: round(ratio, 1) for q, ratio in speed.items()},
            "ms": {q: [round(median(exact), 2), round(median(found), 2)] for q, (exact, found) in times.items()},
            "candidates": settings.candidates,
        }
    print(
        f"{len(vectors_ND):,} of {of:,} passages, {len(questions_QD)} questions; flat: {vectors_ND.nbytes / 1e6:.0f} MB"
    )
    table(rows)
    report(
        "quantised_index",
        ratio=recalls["pqfs"],
        goal=RECALL_GOAL,
        memory_goal=MEMORY_GOAL,
        passages=len(vectors_ND),
        of_passages=of,
        kinds=results,
    )


def write_known_vectors(options: argparse.Namespace, encoder: Encoder, path: Path) -> tuple[list[str], int]:
    """Vectors that are in the cache, as one matrix; stretches of some of their passages; the number of all passages."""
    limit = 20_000 if options.quick else sys.maxsize
    raw, random = path.with_suffix(".raw"), np.random.default_rng(0)
    known, total, stretches = 0, 0, list[str]()
    with EmbeddingCache(options.embeddings, encoder.card) as cache, raw.open("wb") as file:
        for block in in_blocks(texts(options.corpora)):
            total += len(block)
            if known >= limit:
                continue
            vectors_ND, missing = cache.lookup(block)
            there = np.setdiff1d(np.arange(len(block)), missing)
            vectors_ND[there].tofile(file)
            known += len(there)
            for n in random.permutation(there)[:8].tolist():
                words = block[n].split()
                start = int(random.integers(max(1, len(words) - _STRETCH_WORDS)))
                stretches.append(" ".join(words[start : start + _STRETCH_WORDS]))
    if not known:
        raise SystemExit(f"{options.embeddings} has no vector of these passages: encode them first, see --help")
    np.save(path, np.memmap(raw, dtype=np.float32, mode="r").reshape(known, encoder.card.dim))
    raw.unlink()
    return [stretches[n] for n in random.permutation(len(stretches))[:_TRIAL_QUERIES]], total


def texts(corpora: list[Path]) -> Iterator[str]:
    for corpus in corpora:
        for passage in read_passages(corpus):
            yield searchable_text(passage.title, passage.text)


def built(kind: VectorKind, vectors_ND: Vectors, tuning: Trial, path: Path, threads: int) -> tuple[Quantised, Settings]:
    num_vectors, dim = vectors_ND.shape
    lists = num_lists(num_vectors) if kind == "ivf" else None
    codes = train_codes(factory_of(kind, num_vectors, dim), training_sample(vectors_ND, lists))
    blocks = (np.array(vectors_ND[start : start + 4_096]) for start in range(0, num_vectors, 4_096))
    write_codes(codes, blocks, path, shard_rows=shard_rows_of(kind, num_vectors))
    index = Quantised(path, vectors_ND, candidates=1, num_probes=None, num_threads=threads)
    return index, tuned(index, tuning, wanted=_TUNED_TO, num_lists=lists)


def ms(index: Flat | Quantised, queries_QD: Vectors) -> float:
    started = time.perf_counter()
    index.search(queries_QD, 10)
    return (time.perf_counter() - started) * 1e3


def memory_of(kind: str, vectors: Path, codes: Path, queries: Path) -> int:
    command = [
        sys.executable,
        "-m",
        "benchmarks.quantised_index",
        "--memory-of",
        kind,
        *map(str, (vectors, codes, queries)),
    ]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def anonymous_bytes(kind: str, vectors: str, codes: str, queries: str) -> int:
    """Of this process, after a search and before the index was opened."""
    import faiss

    questions_QD = np.load(queries)
    faiss.knn(questions_QD[:4], questions_QD, 10, metric=faiss.METRIC_INNER_PRODUCT)  # faiss' own pages
    before = rss_anonymous()
    vectors_ND = np.load(vectors, mmap_mode="r")
    index = Quantised(Path(codes), vectors_ND, candidates=20, num_probes=8 if kind == "ivf" else None, num_threads=1)
    index.search(questions_QD[:1], 10)
    return rss_anonymous() - before


def rss_anonymous() -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
