"""Texts of the tiny world -> its tokenizer: byte-level BPE, one token for each word of a name and for each tag."""

import random
import re

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from demo.transcripts import END_OF_TEXT, SKILL, Library, Mix, all_name_words, random_text
from demo.world import WorldSize, make_world
from searcher.qa.tags import TAGS

MAX_VOCAB_SIZE = 1280  # enough for every word of the tiny world, so the BPE runs out of merges a little earlier
WORLD = WorldSize(people=600, companies=120, towns=100, films=100)
MIX = Mix(fact_lists=0.2, readings=0.3, max_facts=4, documents=(1, 2), prior=SKILL)


def train_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    # AutoTokenizer gives every Qwen2 model this normaliser and pre-tokeniser, whatever its tokenizer.json says.
    qwen2 = Qwen2Tokenizer().backend_tokenizer
    tokenizer.normalizer, tokenizer.pre_tokenizer = qwen2.normalizer, qwen2.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCAB_SIZE - len(TAGS),
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_texts(seed), trainer)
    # Not special: decoding with skip_special_tokens must keep them, they are the protocol.
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    # An encoded prompt starts with the token that every pretraining text started with.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def _training_texts(seed: int) -> list[str]:
    """Texts cut at their tags, which are no business of the BPE, and lists of name words, so that no word is rare."""
    rng = random.Random(seed)
    library = Library.of(make_world("train", WORLD, seed))
    texts = ["".join(text for text, _ in random_text(library, MIX, rng)) for _ in range(3000)]
    pieces = [piece for text in texts for piece in re.split("|".join(map(re.escape, (END_OF_TEXT, *TAGS))), text)]
    words = all_name_words()
    return pieces + [" " + " ".join(rng.sample(words, len(words))) for _ in range(100)]
