"""What the command lines of a build and of encoding ahead of one have in common: options, and how errors are said."""

import argparse
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from searcher.contracts.errors import InvalidInput, SearcherError
from searcher.servicekit.settings import key_in
from services.retriever.encoders.card import Backend
from services.retriever.encoders.known import KNOWN_MODELS, EncoderChoice
from services.retriever.encoders.remote import Server


def at_least_one(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def utf8(text: str) -> str:
    text.encode()  # what the shell gave may be any bytes
    return text


def add_encoder_options(parser: argparse.ArgumentParser, *, cache: str) -> None:
    parser.add_argument("--encoder", help=f"{', '.join(KNOWN_MODELS)}, or an encoder folder; for all kinds but bm25")
    parser.add_argument("--encoder-checkpoint", type=Path, help="folder of a known encoder's Hugging Face files")
    parser.add_argument("--encoder-backend", type=Backend, choices=list(Backend), help="default: the encoder's own")
    parser.add_argument("--encoder-url", help="of an OpenAI-compatible server; ends where /embeddings begins")
    parser.add_argument("--encoder-key-file", type=Path, help="file with the key that the server asks for")
    parser.add_argument("--query-prefix", type=utf8, help="goes before queries, in place of the encoder's own")
    parser.add_argument("--max-tokens", type=int, help="longer passages are cut, in place of the encoder's own length")
    parser.add_argument("--encoder-cache", type=Path, help=f"where exported encoders are kept (default: {cache})")


def encoder_choice(options: argparse.Namespace) -> EncoderChoice | None:
    if options.encoder is None:
        return None
    changes: dict[str, Any] = {"query_prefix": options.query_prefix, "max_tokens": options.max_tokens}
    return EncoderChoice(
        options.encoder,
        checkpoint=options.encoder_checkpoint,
        backend=options.encoder_backend,
        server=Server(url=options.encoder_url) if options.encoder_url else None,
        changes={name: value for name, value in changes.items() if value is not None},
    )


def encoder_key(options: argparse.Namespace) -> SecretStr | None:
    """Raises InvalidInput for a file that holds none."""
    try:
        key = key_in(options.encoder_key_file, variable="--encoder-key-file")
    except (OSError, ValueError) as error:
        raise InvalidInput(f"encoder_key_file: {error}") from None
    return SecretStr(key) if key else None


def add_skip_bad_lines(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--skip-bad-lines", action="store_true", help="count them instead of stopping at the first")


def exit_code_of(work: Callable[[], object]) -> int:
    """Do it. What stops it is said in one line on stderr."""
    try:
        work()
    except SearcherError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInput) else 1
    except (OSError, sqlite3.OperationalError) as error:  # no permission, a full disk
        print(f"error: {error}; what was done is kept, and the same command goes on from there", file=sys.stderr)
        return 1
    except sqlite3.DatabaseError as error:
        print(f"error: the kept vectors are damaged ({error}); delete their folder (--embeddings)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
