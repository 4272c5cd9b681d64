"""What is asked of a build. Two with equal requests give the same index, so an equal one is not built again."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import SecretStr

from searcher.files import OnBytes, file_sha256
from services.retriever.building.kinds import VectorKind
from services.retriever.encoders.card import EncoderCard, read_card
from services.retriever.encoders.export import folder_sha256
from services.retriever.index.layout import RERANKER_CARD_FILE
from services.retriever.index.manifest import RerankerCard
from services.retriever.index.rerank import read_reranker_card

Kind = VectorKind | Literal["bm25", "auto"]
KINDS: tuple[Kind, ...] = ("bm25", "flat", "fp16", "pqfs", "rabitq", "ivf", "auto")


@dataclass(frozen=True)
class BuildOptions:
    """What may be otherwise than usual."""

    encoder_cache: Path | None = None
    """Where exported encoders are kept; by default `.encoders` beside the index."""
    embeddings: Path | None = None
    """Where vectors are kept by content; by default `.embeddings` beside the index."""
    hybrid: bool = False
    """Match words as well, and join both by their ranks."""
    reranker: Path | None = None
    """A folder with reranker.json, tokenizer.json and model.onnx."""
    refine_dtype: Literal["float32", "float16"] = "float32"
    """Of the vectors that decide between a quantised index' candidates; float16 halves the disk they take."""
    recall: float = 0.99
    """A quantised index looks at as many candidates as this takes, on its own sample."""
    queries: Path | None = None
    """JSONL with real questions to measure recall on; without it, stretches of the passages serve."""
    skip_bad_lines: bool = False
    num_threads: int | None = None
    encoder_key: SecretStr | None = None
    """What an `openai-http` encoder's server asks for. Never written anywhere."""


@dataclass(frozen=True)
class Request:
    """Two builds with equal requests give the same index."""

    source_sha256: str
    kind: Kind
    encoder: EncoderCard | None
    hybrid: bool
    reranker: RerankerCard | None
    refine_dtype: str
    recall: float
    queries_sha256: str | None
    skip_bad_lines: bool

    @property
    def sha256(self) -> str:
        facts = asdict(self) | {
            "encoder": self.encoder and self.encoder.model_dump(mode="json", exclude_none=True),
            "reranker": self.reranker and self.reranker.model_dump(mode="json"),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _reranker_card(folder: Path) -> RerankerCard:
    weights_sha256 = folder_sha256(folder, besides=RERANKER_CARD_FILE)
    return read_reranker_card(folder).model_copy(update={"weights_sha256": weights_sha256})


def request_of(
    source: Path, kind: Kind, encoder_at: Path | None, options: BuildOptions, *, on_bytes: OnBytes
) -> Request:
    return Request(
        source_sha256=file_sha256(source, on_bytes=on_bytes),
        kind=kind,
        encoder=read_card(encoder_at) if encoder_at else None,
        hybrid=options.hybrid,
        reranker=_reranker_card(options.reranker) if options.reranker else None,
        refine_dtype=options.refine_dtype,
        recall=options.recall,
        queries_sha256=file_sha256(options.queries) if options.queries else None,
        skip_bad_lines=options.skip_bad_lines,
    )
