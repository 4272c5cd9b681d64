"""An encoder folder -> the encoder, by its card."""

from pathlib import Path

from pydantic import SecretStr

from services.retriever.encoders.card import Backend, read_card
from services.retriever.encoders.local import OnnxEncoder
from services.retriever.encoders.protocol import Encoder
from services.retriever.encoders.remote import HttpEncoder


def open_encoder(
    folder: Path, *, num_threads: int, server_url: str | None = None, server_key: SecretStr | None = None
) -> Encoder:
    """The encoder of a folder, by its card. `server_url` takes the place of the one in server.json.

    Raises InvalidInput for a folder that is not one, or whose backend is not installed.
    """
    backend = read_card(folder).backend
    if backend is Backend.ONNX:
        return OnnxEncoder(folder, num_threads=num_threads)
    if backend is Backend.TORCH:
        from services.retriever.encoders.torch_encoder import TorchEncoder

        return TorchEncoder(folder, num_threads=num_threads)
    return HttpEncoder(folder, url=server_url, key=server_key)
