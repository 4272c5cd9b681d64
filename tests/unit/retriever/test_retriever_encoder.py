import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import stamina

from searcher.clients.embeddings import EmbeddingsClient
from searcher.contracts.errors import InvalidInput, SearcherError, UpstreamUnavailable
from searcher.files import file_sha256
from services.retriever.encoders.card import Backend, EncoderCard, Pooling, read_card
from services.retriever.encoders.export import encoder_folder
from services.retriever.encoders.known import KNOWN_MODELS, EncoderChoice, KnownModel
from services.retriever.encoders.local import OnnxEncoder, pool
from services.retriever.encoders.opening import open_encoder, try_out
from services.retriever.encoders.protocol import Encoder
from services.retriever.encoders.remote import HttpEncoder, Server, read_server

A, B = 1, 2  # axes of the letters


def test_vectors_are_normalised_means_over_the_tokens(letter_encoder: Callable[..., Path]) -> None:
    encoder = OnnxEncoder(letter_encoder(), num_threads=1)

    (vector,) = encoder.encode_queries(["aab"])

    assert vector[[A, B]].tolist() == pytest.approx([2 / 5**0.5, 1 / 5**0.5])


def test_cls_pooling_takes_the_first_token(letter_encoder: Callable[..., Path]) -> None:
    encoder = OnnxEncoder(letter_encoder(pooling="cls"), num_threads=1)

    (vector,) = encoder.encode_queries(["baaa"])

    assert vector.argmax() == B


def test_texts_are_cut_at_the_cards_length(letter_encoder: Callable[..., Path]) -> None:
    encoder = OnnxEncoder(letter_encoder(max_tokens=8), num_threads=1)

    cut, whole = encoder.encode_passages(["a" * 8 + "b" * 50, "a"])

    assert cut.tolist() == whole.tolist()


def test_queries_may_be_cut_elsewhere_than_passages(letter_encoder: Callable[..., Path]) -> None:
    encoder = OnnxEncoder(letter_encoder(max_tokens=8, query_max_tokens=10), num_threads=1)
    text = "a" * 8 + "b" * 50

    (query,), (passage,), (again,) = (
        encode([text]) for encode in (encoder.encode_queries, encoder.encode_passages, encoder.encode_queries)
    )

    assert query[[A, B]].tolist() == pytest.approx([8 / 68**0.5, 2 / 68**0.5])
    assert passage[[A, B]].tolist() == [1, 0]
    assert again.tolist() == query.tolist()


def test_another_length_of_passages_leaves_queries_at_the_models(
    tmp_path: Path, letter_encoder: Callable[..., Path]
) -> None:
    def card(**changes: object) -> EncoderCard:
        return read_card(encoder_folder(EncoderChoice(str(tmp_path / "letters"), changes=changes), tmp_path / "made"))

    letter_encoder(max_tokens=16)

    assert (card(max_tokens=10).max_tokens, card(max_tokens=10).query_max_tokens) == (10, 16)
    assert card(max_tokens=16) == card()
    assert card().query_max_tokens is None


def test_a_length_that_no_encoder_can_have_is_refused(tmp_path: Path, letter_encoder: Callable[..., Path]) -> None:
    with pytest.raises(InvalidInput, match="encoder: max_tokens: Input should be greater than or equal to 8"):
        encoder_folder(EncoderChoice(str(letter_encoder()), changes={"max_tokens": 3}), tmp_path / "made")


def test_prefixes_go_before_queries_and_passages_each(letter_encoder: Callable[..., Path]) -> None:
    encoder = OnnxEncoder(letter_encoder(query_prefix="a", passage_prefix="b", pooling="cls"), num_threads=1)

    assert encoder.encode_queries(["z"])[0].argmax() == A
    assert encoder.encode_passages(["z"])[0].argmax() == B


def test_a_text_has_the_same_vector_whatever_it_is_batched_with(
    letter_encoder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = OnnxEncoder(letter_encoder(), num_threads=1)
    texts = ["abc", "z", "hello world", "", "abcabcabcabc", "q" * 16]
    alone = np.concatenate([encoder.encode_passages([text]) for text in texts])
    monkeypatch.setattr(encoder, "batch_tokens", 24)

    together = encoder.encode_passages(texts)

    assert together == pytest.approx(alone, abs=1e-6)


def test_a_model_of_other_dimensions_than_its_card_is_refused(letter_encoder: Callable[..., Path]) -> None:
    with pytest.raises(InvalidInput, match="gives 27 dimensions, but its card says 30"):
        OnnxEncoder(letter_encoder(dim=30), num_threads=1)


def test_a_model_that_wants_token_types_gets_those_of_a_first_text(letter_encoder: Callable[..., Path]) -> None:
    inputs = ("input_ids", "token_type_ids", "attention_mask")

    encoder = OnnxEncoder(letter_encoder(inputs=inputs), num_threads=1)

    assert encoder.encode_queries(["b"])[0].argmax() == B


def test_a_model_that_wants_what_nobody_gives_is_refused(letter_encoder: Callable[..., Path]) -> None:
    with pytest.raises(InvalidInput, match=r"model\.onnx: wants position_ids; what can be given is attention_mask, "):
        OnnxEncoder(letter_encoder(inputs=("input_ids", "position_ids")), num_threads=1)


def test_a_model_that_pools_by_itself_is_refused(letter_encoder: Callable[..., Path], counting_reranker: Path) -> None:
    folder = letter_encoder()
    (folder / "model.onnx").write_bytes((counting_reranker / "model.onnx").read_bytes())

    with pytest.raises(InvalidInput, match="its first output has 2 axes; hidden states have 3"):
        OnnxEncoder(folder, num_threads=1)


@pytest.mark.parametrize("damaged", ["model.onnx", "tokenizer.json"])
def test_a_damaged_file_is_named(letter_encoder: Callable[..., Path], damaged: str) -> None:
    folder = letter_encoder()
    (folder / damaged).write_bytes((folder / damaged).read_bytes()[:40])

    with pytest.raises(InvalidInput, match=f"{damaged}: cannot be read: "):
        OnnxEncoder(folder, num_threads=1)


def test_an_unknown_encoder_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"'word2vec' is neither one of minilm, .* nor a folder"):
        encoder_folder("word2vec", tmp_path)


def test_the_last_token_is_the_texts_not_the_paddings(letter_encoder: Callable[..., Path]) -> None:
    encoder = OnnxEncoder(letter_encoder(pooling="last"), num_threads=1)

    short, long = encoder.encode_passages(["zb", "zzzzzzza"])

    assert (short.argmax(), long.argmax()) == (B, A)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [("mean", [[2.0, 3.0], [5.0, 6.0]]), ("cls", [[1.0, 2.0], [5.0, 6.0]]), ("last", [[3.0, 4.0], [5.0, 6.0]])],
)
def test_pooling_by_hand(pooling: str, expected: list[list[float]]) -> None:
    hidden = np.array([[[1, 2], [3, 4]], [[5, 6], [9, 9]]], dtype=np.float32)
    mask = np.array([[True, True], [True, False]])

    assert pool(hidden, mask, Pooling(pooling)).tolist() == expected


def test_known_models_are_used_as_their_authors_and_r1_searcher_say() -> None:
    bge, e5, qwen = (KNOWN_MODELS[name] for name in ("bge-large-en-v1.5", "e5-base-v2", "qwen3-embedding-0.6b"))

    assert (bge.pooling, bge.dim, bge.passage_prefix) == (Pooling.CLS, 1024, "")
    assert bge.query_prefix == "Represent this sentence for searching relevant passages:"
    assert (e5.pooling, e5.dim, e5.query_prefix, e5.passage_prefix) == (Pooling.MEAN, 768, "query: ", "passage: ")
    assert (qwen.pooling, qwen.dim, qwen.backend) == (Pooling.LAST, 1024, Backend.TORCH)
    assert qwen.query_prefix.startswith("Instruct: ")
    assert qwen.query_prefix.endswith("\nQuery:")


# -- models of transformers -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights, as Hugging Face lays one out."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    BertModel(config).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "rome", "paris", "is", "a", "city", "the", "film", "who", "?"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def known_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = KnownModel("nobody/tiny", 32, Pooling.CLS, query_prefix="who ", max_tokens=16)
    monkeypatch.setitem(KNOWN_MODELS, "tiny", tiny)


@pytest.mark.usefixtures("known_tiny")
def test_onnx_and_torch_give_a_checkpoint_the_same_vectors(tmp_path: Path, tiny_checkpoint: Path) -> None:
    texts = ["rome is a city", "paris", "the film ? the film ? the film ? the film ? the film ?"]
    folders = {
        backend: encoder_folder(EncoderChoice("tiny", checkpoint=tiny_checkpoint, backend=backend), tmp_path)
        for backend in (Backend.ONNX, Backend.TORCH)
    }

    onnx, torch = (open_encoder(folder, num_threads=1) for folder in folders.values())

    assert onnx.encode_passages(texts) == pytest.approx(torch.encode_passages(texts), abs=1e-5)
    assert onnx.encode_queries(["rome"]) == pytest.approx(onnx.encode_passages(["who rome"]), abs=1e-6)
    assert np.linalg.norm(torch.encode_passages(texts), axis=1) == pytest.approx([1, 1, 1])
    assert onnx.card.weights_sha256 == torch.card.weights_sha256 == file_sha256(tiny_checkpoint / "model.safetensors")


@pytest.mark.usefixtures("known_tiny")
def test_an_encoder_is_made_once_and_with_other_prefixes_beside(tmp_path: Path, tiny_checkpoint: Path) -> None:
    choice = EncoderChoice("tiny", checkpoint=tiny_checkpoint, backend=Backend.TORCH)
    first = encoder_folder(choice, tmp_path)
    made = (first / "encoder.json").stat().st_ino

    again = encoder_folder(choice, tmp_path)
    other = encoder_folder(replace(choice, changes={"query_prefix": "", "max_tokens": 8}), tmp_path)

    assert (again, (again / "encoder.json").stat().st_ino) == (first, made)
    assert other != first
    assert (read_card(other).query_prefix, read_card(other).max_tokens) == ("", 8)


def test_a_model_that_is_not_here_is_refused_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)

    with pytest.raises(InvalidInput) as refused:
        encoder_folder("bge-small-en-v1.5", tmp_path)

    assert "hf download BAAI/bge-small-en-v1.5 --local-dir bge-small-en-v1.5" in str(refused.value)
    assert "--encoder-checkpoint bge-small-en-v1.5" in str(refused.value)


@pytest.mark.usefixtures("known_tiny")
def test_a_checkpoint_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"holds none of model\.safetensors"):
        encoder_folder(EncoderChoice("tiny", checkpoint=tmp_path), tmp_path / "cache")


@pytest.mark.usefixtures("known_tiny")
def test_a_truncated_checkpoint_is_named(tmp_path: Path, tiny_checkpoint: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:1_000])

    with pytest.raises(InvalidInput, match="broken: SafetensorError: "):
        encoder_folder(EncoderChoice("tiny", checkpoint=broken), tmp_path / "cache")


@pytest.mark.usefixtures("known_tiny")
def test_where_torch_is_not_installed_the_way_to_an_encoder_is_told(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)

    with pytest.raises(InvalidInput, match=r"takes torch, once; `pip install torch .* bring the folder along"):
        encoder_folder(EncoderChoice("tiny", checkpoint=tiny_checkpoint), tmp_path)


@pytest.mark.parametrize("backend", [Backend.ONNX, Backend.TORCH])
@pytest.mark.usefixtures("known_tiny")
def test_a_length_beyond_the_models_positions_is_found_before_a_text_has_it(
    tmp_path: Path, tiny_checkpoint: Path, backend: Backend
) -> None:
    def opened(max_tokens: int) -> Encoder:
        changes = {"max_tokens": max_tokens}
        choice = EncoderChoice("tiny", checkpoint=tiny_checkpoint, backend=backend, changes=changes)
        return open_encoder(encoder_folder(choice, tmp_path), num_threads=1)

    try_out(opened(512))
    with pytest.raises(InvalidInput, match=r"tiny cannot encode a text of the length .*\(max_tokens 513, "):
        try_out(opened(513))


@pytest.mark.usefixtures("known_tiny")
def test_what_a_killed_build_left_in_the_cache_goes(tmp_path: Path, tiny_checkpoint: Path) -> None:
    left = tmp_path / ".export-killed" / "encoder"
    left.mkdir(parents=True)

    encoder_folder(EncoderChoice("tiny", checkpoint=tiny_checkpoint, backend=Backend.TORCH), tmp_path)

    assert not left.parent.exists()


# -- servers ----------------------------------------------------------------------------------------------------------


def remote(tmp_path: Path, answer: Callable[[httpx.Request], httpx.Response], **changes: Any) -> HttpEncoder:
    server = Server(url="http://encoder/v1")
    folder = encoder_folder(EncoderChoice("e5-small-v2", server=server, changes={"dim": 2} | changes), tmp_path)
    client = EmbeddingsClient("http://encoder/v1", attempts=2, transport=httpx.MockTransport(answer))
    return HttpEncoder(folder, client=client)


def embeddings(vector_of: Callable[[str], list[float]]) -> Callable[[httpx.Request], httpx.Response]:
    """A server that answers in the reverse order, as it may."""

    def answer(request: httpx.Request) -> httpx.Response:
        texts = json.loads(request.content)["input"]
        rows = [{"index": n, "embedding": vector_of(text)} for n, text in enumerate(texts)]
        return httpx.Response(200, json={"data": rows[::-1]})

    return answer


def test_a_server_is_asked_with_prefixes_and_its_vectors_are_normalised(tmp_path: Path) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return embeddings(lambda text: [3.0, 4.0] if text.startswith("query: ") else [0.0, 2.0])(request)

    encoder = remote(tmp_path, answer)

    assert encoder.encode_queries(["x"]) == pytest.approx(np.array([[0.6, 0.8]]))
    assert encoder.encode_passages(["x"]) == pytest.approx(np.array([[0.0, 1.0]]))
    assert asked[0].url == "http://encoder/v1/embeddings"
    body = json.loads(asked[1].content)
    assert (body["model"], body["input"]) == ("intfloat/e5-small-v2", ["passage: x"])
    assert encoder.card.backend is Backend.OPENAI_HTTP


def test_a_server_is_told_where_to_cut(tmp_path: Path) -> None:
    told: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        told.append(json.loads(request.content)["truncate_prompt_tokens"])
        return embeddings(lambda text: [1.0, 0.0])(request)

    encoder = remote(tmp_path, answer, max_tokens=300)
    encoder.encode_queries(["x"])
    encoder.encode_passages(["x"])

    assert told == [512, 300]


def test_many_texts_are_asked_in_parts_and_come_back_in_order(tmp_path: Path) -> None:
    encoder = remote(tmp_path, embeddings(lambda text: [float(text), 0.0]), passage_prefix="", normalised=False)

    vectors = encoder.encode_passages([str(n) for n in range(100)])

    assert vectors[:, 0].tolist() == list(range(100))


@pytest.mark.parametrize("status", [401, 404, 413])
def test_a_server_that_refuses_is_not_its_callers_fault(tmp_path: Path, status: int) -> None:
    encoder = remote(tmp_path, lambda request: httpx.Response(status, json={"error": "no"}))

    with pytest.raises(UpstreamUnavailable, match="the server refuses: "):
        encoder.encode_passages(["a"])


@pytest.mark.parametrize("status", [429, 503])
def test_a_servers_outage_is_an_error_not_a_vector(tmp_path: Path, status: int) -> None:
    asked: list[int] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        asked.append(status)
        return httpx.Response(status)

    with stamina.set_testing(True, attempts=2), pytest.raises(UpstreamUnavailable):
        remote(tmp_path, refuse).encode_queries(["x"])

    assert len(asked) == 2


@pytest.mark.parametrize("body", [{"data": []}, {"data": [{"index": 0}]}, {"vectors": []}, []])
def test_an_answer_that_is_no_list_of_embeddings_is_an_error(tmp_path: Path, body: Any) -> None:
    encoder = remote(tmp_path, lambda request: httpx.Response(200, json=body))

    with pytest.raises(SearcherError, match="encoder: "):
        encoder.encode_queries(["x"])


def test_a_page_in_place_of_an_answer_is_an_error(tmp_path: Path) -> None:
    encoder = remote(tmp_path, lambda request: httpx.Response(200, html="<html>Sign in</html>"))

    with pytest.raises(SearcherError, match="encoder at http://encoder/v1 answers '<html>Sign in</html>', which is no"):
        encoder.encode_queries(["x"])


def test_a_server_of_another_model_is_refused_by_its_dimensions(tmp_path: Path) -> None:
    encoder = remote(tmp_path, embeddings(lambda text: [1.0, 2.0, 3.0]))

    with pytest.raises(InvalidInput, match="the server gives"):
        encoder.encode_queries(["x"])


def test_a_remote_encoder_without_an_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="--encoder-url"):
        encoder_folder(EncoderChoice("e5-small-v2", backend=Backend.OPENAI_HTTP), tmp_path)


def test_another_address_or_model_is_another_encoder(tmp_path: Path) -> None:
    def sha256(server: Server) -> str:
        return read_card(encoder_folder(EncoderChoice("e5-small-v2", server=server), tmp_path)).weights_sha256

    first = sha256(Server(url="http://one/v1", model="a"))

    assert sha256(Server(url="http://one/v1/", model="a", timeout_seconds=5)) == first
    assert (
        len({first, sha256(Server(url="http://two/v1", model="a")), sha256(Server(url="http://one/v1", model="b"))})
        == 3
    )


def test_another_timeout_is_noted_in_the_same_encoder_which_others_may_be_reading(tmp_path: Path) -> None:
    def made(**changes: Any) -> Path:
        return encoder_folder(EncoderChoice("e5-small-v2", server=Server(url="http://one/v1", **changes)), tmp_path)

    folder = made()
    card = (folder / "encoder.json").stat()

    assert made(timeout_seconds=5) == folder
    assert read_server(folder).timeout_seconds == 5
    assert (folder / "encoder.json").stat() == card
    assert sorted(path.name for path in folder.iterdir()) == ["encoder.json", "server.json"]


def test_an_own_folder_may_name_a_server(tmp_path: Path) -> None:
    made = encoder_folder(EncoderChoice("e5-small-v2", server=Server(url="http://one/v1", model="a")), tmp_path / "c")
    own = made.rename(tmp_path / "own")

    here = encoder_folder(str(own), tmp_path / "c")
    there = encoder_folder(EncoderChoice(str(own), server=Server(url="http://two/v1")), tmp_path / "c")

    assert read_server(here) == Server(url="http://one/v1", model="a")
    assert read_server(there) == Server(url="http://two/v1", model="a")
    assert read_card(here).weights_sha256 != read_card(there).weights_sha256


# -- own folders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", ["model.onnx", "tokenizer.json"])
def test_an_own_folder_is_known_by_its_files_not_by_what_its_card_says(
    tmp_path: Path, letter_encoder: Callable[..., Path], changed: str
) -> None:
    folder = letter_encoder()
    first = read_card(encoder_folder(str(folder), tmp_path / "cache"))

    (folder / ".DS_Store").write_bytes(b"of no importance")
    same = read_card(encoder_folder(str(folder), tmp_path / "cache"))
    (folder / changed).write_bytes((folder / changed).read_bytes() + b"\n")
    other = read_card(encoder_folder(str(folder), tmp_path / "cache"))

    assert first.weights_sha256 not in ("0" * 64, other.weights_sha256)
    assert same == first


@pytest.mark.parametrize("missing", ["model.onnx", "tokenizer.json"])
def test_an_own_folder_without_what_its_backend_needs_is_refused(
    tmp_path: Path, letter_encoder: Callable[..., Path], missing: str
) -> None:
    folder = letter_encoder()
    (folder / missing).unlink()

    with pytest.raises(InvalidInput, match=f"{missing}: no such file, but the encoder's backend onnx needs it"):
        encoder_folder(str(folder), tmp_path / "cache")


@pytest.mark.parametrize(
    ("asked", "refusal"),
    [
        ({"backend": Backend.TORCH}, "encoder_backend: .* is an encoder for onnx, not for torch"),
        ({"server": Server(url="http://one/v1")}, "encoder_url: http://one/v1 would not be asked"),
        ({"checkpoint": Path("files")}, "encoder_checkpoint: is for a known model's name"),
    ],
)
def test_what_does_not_apply_to_an_own_folder_is_refused(
    tmp_path: Path, letter_encoder: Callable[..., Path], asked: dict[str, Any], refusal: str
) -> None:
    with pytest.raises(InvalidInput, match=refusal):
        encoder_folder(EncoderChoice(str(letter_encoder()), **asked), tmp_path / "cache")


@pytest.mark.parametrize(
    ("asked", "refusal"),
    [
        ({"backend": Backend.ONNX, "server": Server(url="http://one/v1")}, "encoder_url: .* as the backend is onnx"),
        (
            {"checkpoint": Path("files"), "server": Server(url="http://one/v1")},
            "encoder_checkpoint: files would not be read, as the backend is openai-http",
        ),
    ],
)
def test_what_does_not_apply_to_a_known_model_is_refused(tmp_path: Path, asked: dict[str, Any], refusal: str) -> None:
    with pytest.raises(InvalidInput, match=refusal):
        encoder_folder(EncoderChoice("e5-small-v2", **asked), tmp_path)
