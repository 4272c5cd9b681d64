import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from demo.tokenizer import MAX_VOCAB_SIZE, train_tokenizer
from demo.transcripts import SKILL, Library, Mix, all_name_words, prompt, random_text
from demo.world import WorldSize, make_world
from searcher.qa.tags import TAGS

TINY_MODEL = Path(__file__).parents[3] / "demo" / "tiny-model"


@pytest.fixture(scope="module", params=["fresh", "shipped"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return train_tokenizer() if request.param == "fresh" else AutoTokenizer.from_pretrained(TINY_MODEL)


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


def test_a_model_directory_loads_the_tokenizer_it_was_given(tmp_path: Path) -> None:
    """transformers picks a tokenizer's class by the model's, which may cut texts in another way."""
    trained = train_tokenizer()
    trained.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((TINY_MODEL / "config.json").read_bytes())
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    library = Library.of(make_world("test", WorldSize(people=100, companies=20, towns=20, films=20), seed=0))
    rng = random.Random(0)

    for _ in range(100):
        mix = Mix(fact_lists=0.2, readings=0.2, max_facts=4, documents=(1, 2), prior=SKILL)
        for segment in random_text(library, mix, rng):
            assert loaded.encode(segment.text) == trained.encode(segment.text)
