"""Nothing -> the tiny base model: a 1 M-parameter Qwen2 that can search and read but rarely does. One CPU core.

Two stages. The skill stage teaches reading and the mechanics of searching, and is checkpointed; the anneal then turns
its result into a base with the habits of a `Prior`, so several bases can be made from one skill checkpoint.
Measuring how a base behaves on its own is left to demo/probe.py.
"""

import argparse
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from demo.muon import Muon
from demo.tokenizer import train_tokenizer
from demo.transcripts import (
    BASE,
    DOCUMENTS_PER_SEARCH,
    SKILL,
    Library,
    Mix,
    Segment,
    documents_block,
    prompt,
    random_text,
    reading,
)
from demo.world import SIZES, WorldSize, ask, make_world
from searcher.qa.tags import QUERY_CLOSE, QUERY_OPEN

# B = texts, T = tokens (right-padded), K = tokens that carry loss, D = model width

FACTS = Mix(fact_lists=0.60, readings=0.25, max_facts=4, documents=(1, 1, 2), prior=SKILL)
READING = Mix(fact_lists=0.15, readings=0.35, max_facts=8, documents=(1, 2, 3), prior=SKILL)
ANNEAL = replace(READING, fact_lists=0.05, readings=0.10, shown_searches=0.50, share_given=0.0, prior=BASE)
SHARE_FACTS = 0.27
"""Share of the skill stage that reads FACTS; a dense teacher of in-context copying, which has to come first."""

WORLD = WorldSize(people=600, companies=120, towns=100, films=100)
TEXTS_PER_WORLD = 800
"""Then the world is thrown away, so that no fact can be memorised."""
BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Stage:
    tokens: int
    """Length, in padded tokens."""
    warmup_tokens: int
    constant_until: float
    """Share of the stage after which the learning rate falls linearly from `peak` to `final`."""
    peak: float
    """Learning rate, as a share of the optimisers' full rates."""
    final: float

    def learning_rate(self, tokens: int) -> float:
        decay = max(0.0, tokens / self.tokens - self.constant_until) / (1 - self.constant_until)
        return min(1.0, (tokens + 1) / self.warmup_tokens) * (self.peak + (self.final - self.peak) * min(1.0, decay))


MUON_LEARNING_RATE = 0.008  # 0.02 unlearns reading at this batch size
ADAMW_LEARNING_RATE = 2e-3
PROBE_EVERY = 200
"""Steps."""


# ---------------------------------------------------------------------------------------------------------------------
# Model


def new_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed_tokens" in name:
                # With the usual 0.02 a token's identity drowns, and copying takes many times the tokens to learn.
                weight.normal_(std=0.1)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
            elif weight.ndim == 2:
                weight.normal_(std=weight.shape[1] ** -0.5)
    return model


def loss_of(model: Qwen2ForCausalLM, batch: "Batch") -> Tensor:
    """Mean cross-entropy over the tokens that carry loss. Only their logits are computed, a fifth of all."""
    # Right-padding needs no mask under causal attention.
    hidden_BTD = model.model(input_ids=batch.ids_BT[:, :-1]).last_hidden_state
    logits_KV = model.lm_head(hidden_BTD[batch.carries_loss_BT[:, 1:]])
    return F.cross_entropy(logits_KV, batch.ids_BT[:, 1:][batch.carries_loss_BT[:, 1:]])


# ---------------------------------------------------------------------------------------------------------------------
# Batches


@dataclass(frozen=True)
class Batch:
    ids_BT: Tensor
    carries_loss_BT: Tensor


def encode(
    texts: list[list[Segment]], tokenizer: PreTrainedTokenizerBase, share_given: float, rng: random.Random
) -> list[tuple[list[int], list[bool]]]:
    """Ids and loss mask of each text: the start token, then its segments tokenised one by one."""
    segments = tokenizer([text for segments in texts for text, _ in segments], add_special_tokens=False)["input_ids"]
    ids_of_segment = iter(segments)
    encoded = []
    for text in texts:
        ids, carries_loss = [tokenizer.bos_token_id], [False]
        for segment in text:
            new_ids = next(ids_of_segment)
            ids += new_ids
            carries_loss += [segment.taught or rng.random() < share_given for _ in new_ids]
        encoded.append((ids, carries_loss))
    return encoded


def batches_of_a_world(tokenizer: PreTrainedTokenizerBase, mix: Mix, rng: random.Random) -> list[Batch]:
    """One fresh world's texts, texts of like length together, in random order."""
    library = Library.of(make_world("train", WORLD, seed=rng.randrange(2**32)))
    texts = encode([random_text(library, mix, rng) for _ in range(TEXTS_PER_WORLD)], tokenizer, mix.share_given, rng)
    texts.sort(key=lambda text: len(text[0]))
    batches: list[Batch] = []
    rows: list[tuple[list[int], list[bool]]] = []
    for row in texts:
        if rows and (len(rows) + 1) * len(row[0]) > BATCH_TOKENS:
            batches.append(_pad(rows, tokenizer.pad_token_id))
            rows = []
        rows.append(row)
    batches.append(_pad(rows, tokenizer.pad_token_id))
    rng.shuffle(batches)
    return batches


def _pad(rows: list[tuple[list[int], list[bool]]], pad_id: int) -> Batch:
    width = max(len(ids) for ids, _ in rows)
    return Batch(
        ids_BT=torch.tensor([ids + [pad_id] * (width - len(ids)) for ids, _ in rows]),
        carries_loss_BT=torch.tensor([mask + [False] * (width - len(mask)) for _, mask in rows]),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Probes: can it read? The loss does not tell, so a held-out world is read with the teacher's words before the answer.


@dataclass(frozen=True)
class Cloze:
    """A context, and the name that the right reader puts after it."""

    context: list[Segment]
    answer: str


def reading_clozes(library: Library, num_documents: int, num_clozes: int, rng: random.Random) -> list[Cloze]:
    """The first exercise after some documents."""
    clozes = []
    for _ in range(num_clozes):
        documents, cue, answer, *_ = reading(library, num_documents, rng)
        clozes.append(Cloze([documents, cue], answer.text))
    return clozes


def transcript_clozes(library: Library, num_clozes: int, rng: random.Random) -> list[Cloze]:
    """The moment in a 1-hop transcript, after a good search, when the answer is first stated."""
    clozes = []
    for _ in range(num_clozes):
        question = ask(library.world, 1, rng)
        (fact,) = question.chain
        search = f" I need to find {fact.noun_phrase}. {QUERY_OPEN} {fact.subject} {QUERY_CLOSE}"
        documents = library.index.search(fact.subject, DOCUMENTS_PER_SEARCH)
        thought = f"The documents say that {fact.cue}"
        texts = [prompt(question.text), search, documents_block(documents), thought]
        clozes.append(Cloze([Segment(text, taught=False) for text in texts], f" {fact.object}"))
    return clozes


@torch.no_grad()
def accuracy(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, clozes: list[Cloze]) -> float:
    """Share of clozes whose answer is likeliest token by token, each given the right ones before it."""
    right = 0
    for cloze in clozes:
        ids = [tokenizer.bos_token_id]
        for text in [*(segment.text for segment in cloze.context), cloze.answer]:
            new_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += new_ids
        likeliest_T = model(input_ids=torch.tensor([ids[:-1]]), logits_to_keep=len(new_ids)).logits[0].argmax(-1)
        right += likeliest_T.tolist() == new_ids
    return right / len(clozes)


class Probes:
    def __init__(self, tokenizer: PreTrainedTokenizerBase, num_clozes: int = 200) -> None:
        rng = random.Random(0)
        library = Library.of(make_world("test", SIZES["test"], seed=0))
        self.tokenizer = tokenizer
        self.clozes = {
            "r1": reading_clozes(library, 1, num_clozes, rng),
            "r3": reading_clozes(library, 3, num_clozes, rng),
            "tr": transcript_clozes(library, num_clozes, rng),
        }

    def __call__(self, model: Qwen2ForCausalLM) -> str:
        model.eval()
        return " ".join(f"{name} {accuracy(model, self.tokenizer, clozes):.2f}" for name, clozes in self.clozes.items())


# ---------------------------------------------------------------------------------------------------------------------
# Training


def skill_batches(tokenizer: PreTrainedTokenizerBase, stage: Stage, rng: random.Random) -> Iterator[Batch]:
    tokens = 0
    while True:
        mix = FACTS if tokens < SHARE_FACTS * stage.tokens else READING
        for batch in batches_of_a_world(tokenizer, mix, rng):
            tokens += batch.ids_BT.numel()
            yield batch


def anneal_batches(tokenizer: PreTrainedTokenizerBase, p_search: float, rng: random.Random) -> Iterator[Batch]:
    mix = replace(ANNEAL, prior=replace(BASE, p_search=p_search))
    while True:
        yield from batches_of_a_world(tokenizer, mix, rng)


def optimisers_of(model: Qwen2ForCausalLM) -> list[torch.optim.Optimizer]:
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    others = [model.model.embed_tokens.weight] + [w for w in model.model.parameters() if w.ndim == 1]
    return [
        Muon(matrices, lr=MUON_LEARNING_RATE),
        torch.optim.AdamW(others, lr=ADAMW_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(model: Qwen2ForCausalLM, batches: Iterator[Batch], stage: Stage, probes: Probes, checkpoint: Path) -> None:
    """One stage. Prints a line and writes `checkpoint` every PROBE_EVERY steps and at the end."""
    optimisers = optimisers_of(model)
    full_rates = [optimiser.param_groups[0]["lr"] for optimiser in optimisers]
    tokens, start, mean_loss = 0, time.perf_counter(), math.nan
    for step, batch in enumerate(batches):
        for optimiser, full_rate in zip(optimisers, full_rates, strict=True):
            optimiser.param_groups[0]["lr"] = full_rate * stage.learning_rate(tokens)
        model.train()
        loss = loss_of(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()

        tokens += batch.ids_BT.numel()
        mean_loss = loss.item() if math.isnan(mean_loss) else 0.98 * mean_loss + 0.02 * loss.item()
        finished = tokens >= stage.tokens
        if finished or step % PROBE_EVERY == 0:
            seconds = time.perf_counter() - start
            remaining = seconds / tokens * max(0, stage.tokens - tokens)
            print(
                f"step {step:5d}  {tokens / 1e6:5.2f} M tokens  loss {mean_loss:.3f}  {probes(model)}  "
                f"{seconds:5.0f} s  cpu {time.process_time():5.0f} s  eta {remaining:5.0f} s",
                flush=True,
            )
            model.save_pretrained(checkpoint)
        if finished:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory of the base model")
    parser.add_argument(
        "--skill", type=Path, default=Path("build/tiny-skill"), help="directory of the skill checkpoint"
    )
    parser.add_argument("--anneal-only", action="store_true", help="start from the skill checkpoint")
    parser.add_argument("--p-search", type=float, default=BASE.p_search, help="Prior.p_search of the anneal")
    parser.add_argument("--skill-tokens", type=int, default=9_000_000)
    parser.add_argument("--anneal-tokens", type=int, default=1_500_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(1)
    skill = Stage(args.skill_tokens, warmup_tokens=160_000, constant_until=0.6, peak=1.0, final=0.35)
    anneal = Stage(args.anneal_tokens, warmup_tokens=40_000, constant_until=0.0, peak=0.6, final=0.02)
    if not args.anneal_only:
        tokenizer = train_tokenizer()
        tokenizer.save_pretrained(args.skill)
        model = new_model(tokenizer, args.seed)
        train(model, skill_batches(tokenizer, skill, random.Random(args.seed)), skill, Probes(tokenizer), args.skill)
    tokenizer = AutoTokenizer.from_pretrained(args.skill)
    model = Qwen2ForCausalLM.from_pretrained(args.skill)
    batches = anneal_batches(tokenizer, args.p_search, random.Random(args.seed + 1))
    train(model, batches, anneal, Probes(tokenizer), args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
