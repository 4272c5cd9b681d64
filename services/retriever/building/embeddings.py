"""Passages -> vectors, each encoded once: vectors lie on disk by the content of their text.

    folder/<encoder>/vectors.f32   rows of float32, only ever appended
    folder/<encoder>/rows.sqlite   hash of the text -> row, checksum of the row

A row counts once its hash is committed, and that happens after its bytes are on disk. So a process may be killed or
stopped at any moment: at most the block in hand is encoded again. Several processes may use one folder. The folder is
named by all that decides a vector, as far as can be known; a few of its vectors are compared with the encoder's own
before the first is used.

`python -m services.retriever.building.embeddings CORPUS… --encoder minilm --into DIR` encodes ahead of a build.
"""

# N, D = texts, dimensions
import argparse
import hashlib
import os
import sqlite3
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from searcher.contracts.errors import InvalidInput, SearcherError
from services.retriever.building.corpus import BadLines, SourcePassage, read_passages
from services.retriever.encoders.card import EncoderCard
from services.retriever.encoders.protocol import Encoder, Vectors
from services.retriever.index.passages import searchable_text

BLOCK_TEXTS = 1_024
"""Texts that are encoded and committed together: what a kill costs at most."""
_VECTORS_FILE, _ROWS_FILE = "vectors.f32", "rows.sqlite"
_LOCK_SECONDS = 600.0
"""How long a writer waits for another, who may be stopped (SIGSTOP) for a while."""
_KEYS_PER_QUERY = 500
_TEXTS_COMPARED, _SAME_COSINE = 8, 0.999
"""One model gives one text the same vector on every machine, up to rounding; two models never do."""
_DECIDES_A_VECTOR = {"weights_sha256", "dim", "pooling", "passage_prefix", "max_tokens", "normalised"}
"""Fields of the card on which a passage's vector depends."""


class EmbeddingCache:
    """Vectors of one encoder's passages. What the encoder does to queries is not part of its identity here."""

    def __init__(self, folder: Path, card: EncoderCard) -> None:
        self.folder = folder / f"{Path(card.name).name}-{_fingerprint(card)}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._row_bytes = 4 * card.dim
        self._dim = card.dim
        self._file = os.open(self.folder / _VECTORS_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        self._rows = sqlite3.connect(self.folder / _ROWS_FILE, timeout=_LOCK_SECONDS, isolation_level=None)
        self._rows.execute(
            "CREATE TABLE IF NOT EXISTS rows (row INTEGER PRIMARY KEY, text BLOB NOT NULL UNIQUE, crc INTEGER NOT NULL)"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._rows.close()
        os.close(self._file)

    def __len__(self) -> int:
        return int(self._rows.execute("SELECT COUNT(*) FROM rows").fetchone()[0])

    def encode_blocks(self, blocks: Iterable[Sequence[str]], encoder: Encoder) -> Iterator[Vectors]:
        """`encode`, block by block. Raises InvalidInput if the first vectors that are known are not this encoder's."""
        compared = False
        for texts in blocks:
            compared = compared or self._compare(texts, encoder)
            yield self.encode(texts, encoder)

    def _compare(self, texts: Sequence[str], encoder: Encoder) -> bool:
        """Whether there was anything to compare."""
        vectors_ND, missing = self.lookup(texts)
        known = np.setdiff1d(np.arange(len(texts)), missing)[:_TEXTS_COMPARED]
        if not len(known):
            return False
        kept_ND, now_ND = vectors_ND[known], encoder.encode_passages([texts[n] for n in known.tolist()])
        longest_N = np.maximum((kept_ND**2).sum(axis=1), (now_ND**2).sum(axis=1))
        if not ((kept_ND * now_ND).sum(axis=1) >= _SAME_COSINE * longest_N).all():  # as with NaN
            raise InvalidInput(
                f"embeddings: {self.folder} holds vectors of another model than {encoder.card.name} is now; delete "
                "that folder, or keep this encoder's vectors elsewhere (--embeddings)"
            )
        return True

    def encode(self, texts: Sequence[str], encoder: Encoder) -> Vectors:
        """Vectors of `texts`, in their order; what is not known yet is encoded and kept."""
        vectors_ND, missing = self.lookup(texts)
        if missing:
            distinct = list(dict.fromkeys(texts[n] for n in missing))
            encoded_ND = encoder.encode_passages(distinct)
            if not (finite_N := np.isfinite(encoded_ND).all(axis=1)).all():
                text = distinct[int(finite_N.argmin())]
                raise SearcherError(f"encoder: {encoder.card.name} gives no numbers (NaN, inf) for {text[:200]!r}")
            encoded = dict(zip(distinct, encoded_ND, strict=True))
            self.store(encoded)
            for n in missing:
                vectors_ND[n] = encoded[texts[n]]
        return vectors_ND

    def lookup(self, texts: Sequence[str]) -> tuple[Vectors, list[int]]:
        """Vectors in the order of `texts`, and the positions of those that are not known; their rows are zero."""
        keys = [_key(text) for text in texts]
        known: dict[bytes, tuple[int, int]] = {}
        for start in range(0, len(keys), _KEYS_PER_QUERY):
            part = keys[start : start + _KEYS_PER_QUERY]
            marks = ",".join("?" * len(part))
            found = self._rows.execute(f"SELECT text, row, crc FROM rows WHERE text IN ({marks})", part)
            known |= {text: (row, crc) for text, row, crc in found}
        vectors_ND = np.zeros((len(texts), self._dim), dtype=np.float32)
        missing = []
        for n, key in enumerate(keys):
            content = self._read(*known[key]) if key in known else None
            if content is None:
                missing.append(n)
            else:
                vectors_ND[n] = np.frombuffer(content, dtype=np.float32)
        return vectors_ND, missing

    def _read(self, row: int, crc: int) -> bytes | None:
        """None for a row that is damaged: it is encoded again."""
        content = os.pread(self._file, self._row_bytes, row * self._row_bytes)
        return content if len(content) == self._row_bytes and zlib.crc32(content) == crc else None

    def store(self, vectors: dict[str, NDArray[np.float32]]) -> None:
        """Append `vectors`, by their texts, but for those that another process has kept meanwhile. Bytes first, then
        the rows that count them."""
        with self._alone():
            texts = list(vectors)
            vectors = {texts[n]: vectors[texts[n]] for n in self.lookup(texts)[1]}
            contents = [np.ascontiguousarray(vector, dtype=np.float32).tobytes() for vector in vectors.values()]
            (first,) = self._rows.execute("SELECT COALESCE(MAX(row) + 1, 0) FROM rows").fetchone()
            os.pwrite(self._file, b"".join(contents), first * self._row_bytes)
            os.fdatasync(self._file)
            rows = (
                (first + n, _key(text), zlib.crc32(content))
                for n, (text, content) in enumerate(zip(vectors, contents, strict=True))
            )
            self._rows.executemany("INSERT OR REPLACE INTO rows (row, text, crc) VALUES (?, ?, ?)", rows)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._rows.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._rows.execute("ROLLBACK")
            raise
        self._rows.execute("COMMIT")


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _fingerprint(card: EncoderCard) -> str:
    facts = card.model_dump_json(include=_DECIDES_A_VECTOR)
    return hashlib.sha256(facts.encode()).hexdigest()[:12]


def in_blocks(texts: Iterable[str], num_texts: int = BLOCK_TEXTS) -> Iterator[list[str]]:
    remaining = iter(texts)
    while block := list(islice(remaining, num_texts)):
        yield block


# ---------------------------------------------------------------------------------------------------------------------
# Command line


def main(arguments: Sequence[str] | None = None) -> int:
    from services.retriever.building.options import (
        add_encoder_options,
        add_skip_bad_lines,
        at_least_one,
        encoder_choice,
        encoder_key,
        exit_code_of,
    )
    from services.retriever.encoders.export import encoder_folder
    from services.retriever.encoders.opening import open_encoder, try_out

    parser = argparse.ArgumentParser(prog="python -m services.retriever.building.embeddings", description=__doc__)
    parser.add_argument("sources", type=Path, nargs="+", metavar="CORPUS")
    add_encoder_options(parser, cache="in --into")
    parser.add_argument("--into", type=Path, required=True, help="folder of the embeddings")
    parser.add_argument("--threads", type=at_least_one, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--shard", type=_shard, default=(0, 1), metavar="I/N", help="of N processes, be number I (0 …)")
    add_skip_bad_lines(parser)
    options = parser.parse_args(arguments)
    choice = encoder_choice(options)
    if choice is None:
        parser.error("--encoder: whose vectors?")
    bad_lines = BadLines()

    def encode() -> None:
        folder = encoder_folder(choice, options.encoder_cache or options.into / ".encoders")
        encoder = open_encoder(folder, num_threads=options.threads, server_key=encoder_key(options))
        try_out(encoder)
        with EmbeddingCache(options.into, encoder.card) as cache:
            for source in options.sources:
                passages = read_passages(source, on_bad_line=bad_lines if options.skip_bad_lines else None)
                _encode(source.name, passages, cache, encoder, shard=options.shard)
        for line in bad_lines.first:
            print(f"skipped {line}", file=sys.stderr)
        if bad_lines.count:
            print(f"{bad_lines.count:,} bad lines skipped", file=sys.stderr)

    return exit_code_of(encode)


def _shard(text: str) -> tuple[int, int]:
    number, of = (int(part) for part in text.split("/"))
    if not 0 <= number < of:
        raise ValueError(text)
    return number, of


def _encode(
    name: str, passages: Iterable[SourcePassage], cache: EmbeddingCache, encoder: Encoder, *, shard: tuple[int, int]
) -> None:
    number, of = shard
    started, done = time.monotonic(), 0
    texts = (searchable_text(passage.title, passage.text) for passage in passages)
    for vectors_ND in cache.encode_blocks(islice(in_blocks(texts), number, None, of), encoder):
        done += len(vectors_ND)
        seconds = time.monotonic() - started
        print(f"{name}: {done:,} passages, {seconds:,.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
