"""What an index folder promises, and the check that it keeps it.

    manifest.json  passages.jsonl  offsets.npy  +  bm25/…  (kind bm25)  or  vectors.npy encoder/…  (kind flat)

The sha256 of manifest.json names the build: it covers every other file by its own sha256.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from searcher.contracts.base import Contract
from searcher.contracts.errors import InvalidInput
from services.retriever.corpus import file_sha256

MANIFEST_FILE = "manifest.json"
FULLY_VERIFIED_BYTES = 128 * 1024 * 1024
"""Files up to this size are hashed when an index is opened; of larger ones only the size is compared."""


class EncoderCard(Contract):
    """How text becomes a vector. Indexes with equal cards share one loaded encoder."""

    name: str
    weights_sha256: str
    """Of the model file that the encoder was exported from."""
    dim: int = Field(ge=1)
    pooling: Literal["mean", "cls"]
    query_prefix: str = ""
    passage_prefix: str = ""
    max_tokens: int = Field(ge=8)
    """Longer texts are cut."""
    normalised: bool = True
    """Vectors have length 1, so the inner product is the cosine."""


class Bm25Facts(Contract):
    kind: Literal["bm25"] = "bm25"
    k1: float = 1.2
    b: float = 0.75
    variant: Literal["lucene"] = "lucene"
    words: Literal["folded"] = "folded"
    """Runs of letters and digits, lower case, without accents; no stemming and no stop words: both cost names."""


class FlatFacts(Contract):
    kind: Literal["flat"] = "flat"
    dtype: Literal["float32"] = "float32"
    metric: Literal["inner_product"] = "inner_product"
    encoder: EncoderCard


IndexFacts = Annotated[Bm25Facts | FlatFacts, Field(discriminator="kind")]


class SourceFacts(Contract):
    name: str
    sha256: str


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
    golden: Golden
    files: dict[str, FileFacts]
    """By path relative to the folder; everything but manifest.json itself."""


def file_facts(folder: Path) -> dict[str, FileFacts]:
    """Facts of all files below `folder`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    return {
        path.relative_to(folder).as_posix(): FileFacts(num_bytes=path.stat().st_size, sha256=file_sha256(path))
        for path in paths
    }


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
    """Compare the folder's files with the manifest. Raises InvalidInput that names the file and the difference."""
    for name, facts in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise InvalidInput(f"{path}: missing; build the index again")
        num_bytes = path.stat().st_size
        if num_bytes != facts.num_bytes:
            raise InvalidInput(f"{path}: {num_bytes} bytes, but the manifest says {facts.num_bytes}; build it again")
        if num_bytes <= FULLY_VERIFIED_BYTES and file_sha256(path) != facts.sha256:
            raise InvalidInput(f"{path}: its sha256 is not the manifest's, so it was changed; build the index again")
