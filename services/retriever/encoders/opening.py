"""An encoder folder -> the encoder, by its card."""

from pathlib import Path

from pydantic import SecretStr

from services.retriever.encoders.card import Backend, read_card
from services.retriever.encoders.local import OnnxEncoder
from services.retriever.encoders.model_files import told_in_a_line
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


def try_out(encoder: Encoder) -> None:
    """Encode the longest texts that the card allows, lest a build find out after hours that the model cannot.

    Raises InvalidInput with what the model said, UpstreamUnavailable for a server that is away.
    """
    card = encoder.card
    longest = "a " * max(card.max_tokens, card.query_max_tokens or 0)
    lengths = f"max_tokens {card.max_tokens}, query_max_tokens {card.query_max_tokens or card.max_tokens}"
    with told_in_a_line(
        f"encoder: {card.name} cannot encode a text of the length its card allows ({lengths}); say --max-tokens with "
        "what the model was made for"
    ):
        encoder.encode_passages([longest])
        encoder.encode_queries([longest])
