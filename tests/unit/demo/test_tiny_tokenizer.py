from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from demo.tokenizer import MAX_VOCAB_SIZE, train_tokenizer
from demo.transcripts import all_name_words, prompt
from searcher.qa.tags import TAGS


@pytest.fixture(scope="module", params=["fresh", "reloaded"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    tokenizer = train_tokenizer()
    if request.param == "fresh":
        return tokenizer
    directory: Path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory)


def test_every_word_of_a_name_is_one_token(tokenizer: PreTrainedTokenizerBase) -> None:
    for word in all_name_words():
        assert len(tokenizer.encode(f" {word}", add_special_tokens=False)) == 1, word


def test_every_tag_is_one_token_that_decoding_keeps(tokenizer: PreTrainedTokenizerBase) -> None:
    for tag in TAGS:
        ids = tokenizer.encode(tag, add_special_tokens=False)
        assert len(ids) == 1, tag
        assert tokenizer.decode(ids, skip_special_tokens=True) == tag


def test_a_prompt_starts_with_the_start_token_and_a_fragment_does_not(tokenizer: PreTrainedTokenizerBase) -> None:
    text = prompt("Who is the mayor of Halor Cross?")

    assert tokenizer.decode(tokenizer.encode(text)) == f"<|endoftext|>{text}"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_end_token_is_also_start_and_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.bos_token == tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0


def test_any_text_survives_the_round_trip(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "Zürich, 東京 & <b>co</b>\n\n\t(1)Title: x"

    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_vocabulary_stays_small(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tokenizer) <= MAX_VOCAB_SIZE


def test_training_it_twice_gives_the_same_tokenizer() -> None:
    assert train_tokenizer().get_vocab() == train_tokenizer().get_vocab()
