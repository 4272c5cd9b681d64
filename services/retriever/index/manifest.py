"""What an index folder promises, and the check that it keeps it.

    manifest.json  passages.jsonl  offsets.npy
    bm25/…                             bm25, hybrid
    encoder/…  vectors.npy             flat, pqfs, rabitq, ivf, hybrid
    encoder/…  vectors.fp16.faiss      fp16
    codes/…                            pqfs, rabitq, ivf
    reranker/…                         where one was asked for

The sha256 of manifest.json names the build: it covers every other file by its own sha256. What begins with a dot is no
part of an index.
"""

import hashlib
import json
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from searcher.contracts.base import Contract
from searcher.contracts.errors import InvalidInput
from searcher.contracts.search import Recall
from searcher.files import OnBytes, file_sha256, files_sha256
from services.retriever.encoders.card import CARD_FILE, MODEL_FILE, NEEDED_FILES, TOKENIZER_FILE, EncoderCard
from services.retriever.index.layout import (
    BM25_FILES,
    BM25_FOLDER,
    CODES_FOLDER,
    ENCODER_FOLDER,
    HALF_VECTORS_FILE,
    OFFSETS_FILE,
    PASSAGES_FILE,
    RERANKER_CARD_FILE,
    RERANKER_FOLDER,
    VECTORS_FILE,
    codes_file,
)

MANIFEST_FILE = "manifest.json"
_VERIFIED_FILE = ".verified.json"
_ALWAYS_HASHED_BYTES = 128 * 1024 * 1024
"""Files up to this size are hashed whenever an index is opened; larger ones once, as long as nobody touches them."""


class Bm25Facts(Contract):
    kind: Literal["bm25"] = "bm25"
    k1: float = 1.2
    b: float = 0.75
    variant: Literal["lucene"] = "lucene"
    words: Literal["folded"] = "folded"
    """Runs of letters and digits, lower case, without accents; no stemming and no stop words: both cost names."""


class VectorFacts(Contract):
    """What all indexes of vectors have in common."""

    metric: Literal["inner_product"] = "inner_product"
    encoder: EncoderCard


class FlatFacts(VectorFacts):
    """Every passage is compared, exactly."""

    kind: Literal["flat"] = "flat"
    dtype: Literal["float32"] = "float32"


class Fp16Facts(VectorFacts):
    """Every passage is compared, with vectors rounded to 16 bits: half of `flat`, and next to no loss."""

    kind: Literal["fp16"] = "fp16"
    dtype: Literal["float16"] = "float16"


class QuantisedFacts(VectorFacts):
    """Short codes name candidates, whose vectors, mapped from disk, then decide. Only the codes need memory."""

    kind: Literal["pqfs", "rabitq", "ivf"]
    dtype: Literal["float32", "float16"] = "float32"
    """Of the vectors that decide."""
    factory: str
    """faiss' name for the codes."""
    candidates: int = Field(ge=1)
    """Per result that is asked for; chosen at build time for the recall that was wanted."""
    num_probes: int | None = None
    """`ivf` only: lists that are read per query; chosen at build time likewise."""


DenseFacts = FlatFacts | Fp16Facts | QuantisedFacts


class HybridFacts(Contract):
    """Words and vectors, joined by the ranks that they give (reciprocal-rank fusion)."""

    kind: Literal["hybrid"] = "hybrid"
    dense: Annotated[DenseFacts, Field(discriminator="kind")]
    bm25: Bm25Facts = Bm25Facts()
    rank_constant: int = Field(default=60, ge=1)
    """A passage gets 1 / (rank_constant + rank) from each list it is in."""
    depth: int = Field(default=100, ge=1)
    """Ranks of each list that count, at least."""

    @property
    def encoder(self) -> EncoderCard:
        return self.dense.encoder


IndexFacts = Annotated[Bm25Facts | FlatFacts | Fp16Facts | QuantisedFacts | HybridFacts, Field(discriminator="kind")]


class RerankerCard(Contract):
    """A cross-encoder that reads query and passage together and orders the first `depth` anew."""

    name: str
    weights_sha256: str
    """Of its files, found out by each build."""
    max_tokens: int = Field(ge=8)
    """Of query and passage together; the passage is cut."""
    depth: int = Field(default=50, ge=1)


class SourceForm(StrEnum):
    """How a source writes a passage down, which R1-Searcher's server repeats as it is."""

    JSONL = "jsonl"
    HOTPOTQA = "hotpotqa"
    """TSV: `Title: <title> Text:  <text>`."""
    KILT = "kilt"
    """TSV: `<title>   <text>`."""


class SourceFacts(Contract):
    name: str
    sha256: str
    form: SourceForm = SourceForm.JSONL


class FileFacts(Contract):
    num_bytes: int
    sha256: str


class Golden(Contract):
    """One query and the score of its best passage, recorded at build time and compared before serving."""

    query: str
    score: float


class Manifest(Contract):
    format: Literal[1] = 1
    source: SourceFacts
    num_passages: int = Field(ge=1)
    index: IndexFacts
    reranker: RerankerCard | None = None
    recall: Recall | None = None
    """Of the vector index; None for `bm25`."""
    request_sha256: str = ""
    """Of all that was asked of the build: an equal request is not built again."""
    skipped_lines: int = Field(default=0, ge=0)
    """Lines of the source that were no passages (`--skip-bad-lines`)."""
    golden: Golden
    files: dict[str, FileFacts]
    """By path relative to the folder; everything but manifest.json itself."""


def file_facts(folder: Path, *, on_bytes: OnBytes = lambda done, total: None) -> dict[str, FileFacts]:
    """Facts of all files below `folder`, which are read for it."""
    names = _files_in(folder)
    digests = files_sha256([folder / name for name in names], on_bytes=on_bytes)
    return {
        name: FileFacts(num_bytes=(folder / name).stat().st_size, sha256=digest)
        for name, digest in zip(names, digests, strict=True)
    }


def _files_in(folder: Path) -> list[str]:
    """All but the manifest, and what begins with a dot, which nobody reads."""
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    shown = [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]
    return [name for name in shown if name != MANIFEST_FILE]


def state_of(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Name, inode, time and size of every file: changes whenever another index lies there, or more of it.

    Raises OSError if there is no manifest, or while files go.
    """
    stats = ((name, (folder / name).stat()) for name in [MANIFEST_FILE, *_files_in(folder)])
    return tuple((name, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


def read_manifest(folder: Path) -> Manifest:
    """Raises InvalidInput if there is none or it is not one of ours."""
    path = folder / MANIFEST_FILE
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InvalidInput(
            f"{path}: no such file, so {folder} is not an index; build one with `searcher index build`"
        ) from None
    except ValidationError as error:
        raise InvalidInput(
            f"{path}: not a manifest of this version: {error.errors()[0]['msg']}; build the index again"
        ) from None


def manifest_sha256(folder: Path) -> str:
    return hashlib.sha256((folder / MANIFEST_FILE).read_bytes()).hexdigest()


def verify(folder: Path, manifest: Manifest) -> None:
    """Compare the folder's files with the manifest: what the kind needs must be listed, what is listed must be there as
    it was written, and nothing else may be. Raises InvalidInput that names the file and the difference.

    That a large file was hashed is noted beside it with its inode and times, which change when the file does. In a
    folder that cannot be written to, large files are hashed at every start.
    """
    for name in _needed(manifest):
        if name not in manifest.files:
            at, kind = folder / MANIFEST_FILE, manifest.index.kind
            raise InvalidInput(f"{at}: does not list {name}, which every {kind} index has; build the index again")
    if names := unlisted(folder, manifest):
        raise InvalidInput(f"{folder / names[0]}: is not in the manifest, so no part of this index; move it away")
    verified = _noted(folder)
    for name, facts in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise InvalidInput(f"{path}: missing; build the index again")
        num_bytes = path.stat().st_size
        if num_bytes != facts.num_bytes:
            raise InvalidInput(f"{path}: {num_bytes} bytes, but the manifest says {facts.num_bytes}; build it again")
        if num_bytes > _ALWAYS_HASHED_BYTES and verified.get(name) == _state(path, facts):
            continue
        if file_sha256(path) != facts.sha256:
            raise InvalidInput(f"{path}: its sha256 is not the manifest's, so it was changed; build the index again")
    note_verified(folder, manifest)


def unlisted(folder: Path, manifest: Manifest) -> list[str]:
    return [name for name in _files_in(folder) if name not in manifest.files]


def _needed(manifest: Manifest) -> list[str]:
    """Files that every index of this kind has, at least."""
    facts = manifest.index
    needed = [PASSAGES_FILE, OFFSETS_FILE]
    if isinstance(facts, Bm25Facts | HybridFacts):
        needed += [f"{BM25_FOLDER}/{name}" for name in BM25_FILES]
    dense = facts.dense if isinstance(facts, HybridFacts) else facts
    if isinstance(dense, VectorFacts):
        needed += [f"{ENCODER_FOLDER}/{name}" for name in (CARD_FILE, *NEEDED_FILES[dense.encoder.backend])]
        needed.append(HALF_VECTORS_FILE if isinstance(dense, Fp16Facts) else VECTORS_FILE)
    if isinstance(dense, QuantisedFacts):
        needed.append(f"{CODES_FOLDER}/{codes_file(0)}")
    if manifest.reranker:
        needed += [f"{RERANKER_FOLDER}/{name}" for name in (RERANKER_CARD_FILE, TOKENIZER_FILE, MODEL_FILE)]
    return needed


def note_verified(folder: Path, manifest: Manifest) -> None:
    """Say of the large files, as they are now, that their hashes are the manifest's."""
    large = {name: facts for name, facts in manifest.files.items() if facts.num_bytes > _ALWAYS_HASHED_BYTES}
    states = {name: _state(folder / name, facts) for name, facts in large.items()}
    if states and states != _noted(folder):
        with suppress(OSError):
            (folder / _VERIFIED_FILE).write_text(json.dumps(states))


def _noted(folder: Path) -> dict[str, list[str | int]]:
    try:
        noted = json.loads((folder / _VERIFIED_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _state(path: Path, facts: FileFacts) -> list[str | int]:
    stat = path.stat()
    return [facts.sha256, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
