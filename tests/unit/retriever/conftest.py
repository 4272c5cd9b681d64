"""A world of four passages, and an encoder whose vectors are histograms of letters: worked out by hand, no model."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import pytest

PASSAGES = (
    {"id": "a1", "title": "Rome", "text": "Rome is the capital of Italy."},
    {"id": "a2", "title": "Paris", "text": "Paris is the capital of France."},
    {"id": "a3", "title": "Beyoncé", "text": "Beyoncé is a singer from Houston."},
    {"id": "a4", "title": "", "text": "A passage without a title."},
)

WriteCorpus = Callable[..., Path]


@pytest.fixture
def write_corpus(tmp_path: Path) -> WriteCorpus:
    def write(passages: Sequence[dict[str, str]] = PASSAGES, name: str = "corpus.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(passage, ensure_ascii=False) + "\n" for passage in passages))
        return path

    return write


@pytest.fixture
def letter_encoder(tmp_path: Path) -> Callable[..., Path]:
    """An encoder folder: each letter is a token, and its hidden state is its own axis."""

    def make(folder: str = "letters", inputs: Sequence[str] = ("input_ids", "attention_mask"), **card: object) -> Path:
        path = tmp_path / folder
        path.mkdir()
        facts = {"name": "letters", "weights_sha256": "0" * 64, "dim": 27, "pooling": "mean", "max_tokens": 16} | card
        (path / "encoder.json").write_text(json.dumps(facts))
        _write_letter_tokenizer(path / "tokenizer.json")
        _write_one_hot_model(path / "model.onnx", inputs)
        return path

    return make


def _write_letter_tokenizer(path: Path, *, pairs: bool = False) -> None:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {"[UNK]": 0, **{letter: number for number, letter in enumerate(ascii_lowercase, start=1)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    if pairs:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A:0 $B:1", special_tokens=[])
    tokenizer.save(str(path))


def _write_one_hot_model(path: Path, inputs: Sequence[str]) -> None:
    import onnx
    from onnx import TensorProto, helper

    def tokens(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"])

    hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["B", "T", 27])
    table = onnx.numpy_helper.from_array(np.eye(27, dtype=np.float32), "table")
    gather = helper.make_node("Gather", ["table", "input_ids"], ["hidden"])
    graph = helper.make_graph([gather], "letters", [tokens(name) for name in inputs], [hidden], [table])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)


@pytest.fixture
def counting_reranker(tmp_path: Path) -> Path:
    """A reranker folder: a pair's score is how many letters the passage has."""
    import onnx
    from onnx import TensorProto, helper

    folder = tmp_path / "reranker"
    folder.mkdir()
    card = {"name": "letters", "weights_sha256": "0" * 64, "max_tokens": 64, "depth": 4}
    (folder / "reranker.json").write_text(json.dumps(card))
    _write_letter_tokenizer(folder / "tokenizer.json", pairs=True)

    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in names]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 1])
    axes = onnx.numpy_helper.from_array(np.array([1]), "axes")
    cast = helper.make_node("Cast", ["token_type_ids"], ["types"], to=TensorProto.FLOAT)
    total = helper.make_node("ReduceSum", ["types", "axes"], ["logits"], keepdims=1)
    graph = helper.make_graph([cast, total], "letters", inputs, [logits], [axes])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), folder / "model.onnx")
    return folder
