"""What every encoder can do. Opening one is left to `opening`."""

# Q, N = queries, passages; D = dimensions
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.retriever.encoders.card import EncoderCard

Vectors = NDArray[np.float32]


class Encoder(Protocol):
    """Not thread-safe, as tokenizers are not: one thread owns it."""

    @property
    def card(self) -> EncoderCard: ...

    def encode_queries(self, queries: Sequence[str]) -> Vectors: ...

    def encode_passages(self, passages: Sequence[str]) -> Vectors: ...
