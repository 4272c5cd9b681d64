from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from searcher.contracts.errors import InvalidInput
from services.retriever import encoder as encoder_module
from services.retriever.encoder import OnnxEncoder
from services.retriever.export_encoder import encoder_folder

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
    monkeypatch.setattr(encoder_module, "BATCH_TOKENS", 24)

    together = encoder.encode_passages(texts)

    assert together == pytest.approx(alone, abs=1e-6)


def test_a_model_of_other_dimensions_than_its_card_is_refused(letter_encoder: Callable[..., Path]) -> None:
    with pytest.raises(InvalidInput, match="gives 27 dimensions, but its card says 30"):
        OnnxEncoder(letter_encoder(dim=30), num_threads=1)


def test_an_unknown_encoder_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="'word2vec' is neither one of minilm nor a folder"):
        encoder_folder("word2vec", tmp_path)
