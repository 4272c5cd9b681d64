"""An encoder's folder, and the card in it: all that a vector depends on.

    encoder.json   the card, and
    tokenizer.json model.onnx     onnx          `input_ids`, `attention_mask` -> hidden states
    tokenizer.json model/…        torch         a checkpoint as transformers reads it
    server.json                   openai-http   the address of a server

so any encoder can be brought along in one of these forms.
"""

from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError

from searcher.contracts.base import Contract
from searcher.contracts.errors import InvalidInput

CARD_FILE, MODEL_FILE, TOKENIZER_FILE = "encoder.json", "model.onnx", "tokenizer.json"
TORCH_FOLDER, SERVER_FILE = "model", "server.json"
C = TypeVar("C", bound=Contract)


class Pooling(StrEnum):
    """Which hidden states become the vector."""

    MEAN = "mean"
    """The mean over the text's tokens: MiniLM, E5."""
    CLS = "cls"
    """The first token's: BGE."""
    LAST = "last"
    """The last token's: decoders such as Qwen3-Embedding."""


class Backend(StrEnum):
    """What computes the vectors; the same model gives the same vectors with each, up to rounding."""

    ONNX = "onnx"
    """ONNX Runtime: the fastest on CPU, and light."""
    TORCH = "torch"
    """transformers: for models that do not fit one ONNX file, and for a GPU."""
    OPENAI_HTTP = "openai-http"
    """A server that speaks OpenAI's /v1/embeddings, as text-embeddings-inference and vLLM do."""


NEEDED_FILES = {
    Backend.ONNX: (TOKENIZER_FILE, MODEL_FILE),
    Backend.TORCH: (TOKENIZER_FILE, f"{TORCH_FOLDER}/config.json"),
    Backend.OPENAI_HTTP: (SERVER_FILE,),
}
"""Beside the card."""


class EncoderCard(Contract):
    """How text becomes a vector. Indexes with equal cards share one loaded encoder."""

    name: str
    weights_sha256: str
    """Of what computes the vectors: a known model's checkpoint, all files of an own folder, a server's address and
    model. Found out by each build (`export`); what an own folder's card says here is not believed."""
    dim: int = Field(ge=1)
    pooling: Pooling
    query_prefix: str = ""
    passage_prefix: str = ""
    max_tokens: int = Field(ge=8)
    """Longer passages are cut."""
    query_max_tokens: int | None = Field(default=None, ge=8)
    """Longer queries are cut; None: where passages are. R1-Searcher cuts passages only, and leaves queries at the
    model's own length."""
    normalised: bool = True
    """Vectors have length 1, so the inner product is the cosine."""
    backend: Backend = Backend.ONNX


def read_card(folder: Path) -> EncoderCard:
    return read_fields(folder / CARD_FILE, EncoderCard, missing=f"so {folder} is not an encoder")


def read_fields(path: Path, kind: type[C], *, missing: str) -> C:
    """A file of the folder. Raises InvalidInput: for one that is not there with `missing`, else with the field."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InvalidInput(f"{path}: no such file, {missing}") from None
    except ValidationError as error:
        raise InvalidInput(f"{path}: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from None
