"""A published location -> a verified local file. Nothing here touches the model, so a bad file changes nothing."""

import hashlib
import json
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

CHUNK_BYTES = 4 * 1024 * 1024
TIMEOUT_SECONDS = 60.0

Shapes = dict[str, tuple[int, ...]]
"""Tensor names -> shapes."""


class BadWeights(Exception):
    """The file is not what was announced; the message says in what it differs."""


@dataclass(frozen=True)
class Announced:
    """What the trainer promised about a file (`searcher.contracts.weights.WeightVersion`)."""

    location: str
    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class LocalFile:
    path: Path
    is_temporary: bool

    def discard(self) -> None:
        """Remove a downloaded copy; a published file stays."""
        if self.is_temporary:
            self.path.unlink(missing_ok=True)


def fetch(announced: Announced, *, api_key: str | None) -> LocalFile:
    """Raises BadWeights if size or hash differ, OSError (URLError included) if the location does not answer."""
    parts = urlsplit(announced.location)
    if parts.scheme == "file":
        path = Path(unquote(parts.path))
        with path.open("rb") as source:
            _verify(source, announced, copy_to=None)
        return LocalFile(path, is_temporary=False)
    if parts.scheme not in ("http", "https"):
        raise BadWeights(f"location {announced.location!r}: use file://, http:// or https://")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    request = urllib.request.Request(announced.location, headers=headers)
    with tempfile.NamedTemporaryFile(prefix="weights-", suffix=".safetensors", delete=False) as copy:
        local = LocalFile(Path(copy.name), is_temporary=True)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as source:
                _verify(source, announced, copy_to=copy)
        except BaseException:
            local.discard()
            raise
    return local


def tensor_shapes(path: Path) -> Shapes:
    """The header of a safetensors file. Raises BadWeights if it has none."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= 100_000_000:
            raise BadWeights(f"{path.name}: not a safetensors file")
        try:
            header = json.loads(file.read(size))
            return {name: tuple(row["shape"]) for name, row in header.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadWeights(f"{path.name}: not a safetensors file") from error


def model_shapes(model_dir: Path) -> Shapes:
    """All tensors of a model directory."""
    return {
        name: shape for path in sorted(model_dir.glob("*.safetensors")) for name, shape in tensor_shapes(path).items()
    }


def check_shapes(given: Shapes, expected: Shapes, *, tied_head: bool) -> None:
    """Raises BadWeights unless the file holds the model, whole. A tied head may be there or not.

    vLLM only warns about a missing tensor and then keeps the old one.
    """
    optional = {"lm_head.weight"} if tied_head else set()
    problems = [f"{name} is missing" for name in expected.keys() - given.keys() - optional]
    problems += [f"{name} is not of this model" for name in given.keys() - expected.keys() - optional]
    problems += [
        f"{name} has shape {given[name]}, the model's is {expected[name]}"
        for name in given.keys() & expected.keys()
        if given[name] != expected[name]
    ]
    if problems:
        raise BadWeights(f"{len(problems)} tensors differ: " + "; ".join(sorted(problems)[:5]))


def _verify(source: IO[bytes], announced: Announced, *, copy_to: IO[bytes] | None) -> None:
    digest, num_bytes = hashlib.sha256(), 0
    while chunk := source.read(CHUNK_BYTES):
        num_bytes += len(chunk)
        if num_bytes > announced.num_bytes:
            break
        digest.update(chunk)
        if copy_to is not None:
            copy_to.write(chunk)
    if num_bytes != announced.num_bytes:
        given = f"over {announced.num_bytes}" if num_bytes > announced.num_bytes else str(num_bytes)
        raise BadWeights(f"{announced.location}: {given} bytes, announced {announced.num_bytes}")
    if digest.hexdigest() != announced.sha256:
        raise BadWeights(f"{announced.location}: sha256 {digest.hexdigest()}, announced {announced.sha256}")
