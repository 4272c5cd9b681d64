"""A tiny model -> how it behaves on a held-out world: does it search, keep to the format, answer? No service runs.

`python -m demo.probe demo/tiny-model` prints one line for greedy decoding and one for sampling at temperature 1.
It plays the rollout service's protocol with Hugging Face's `generate` and BM25 in process.
"""

import argparse
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2ForCausalLM

from demo.transcripts import DOCUMENTS_PER_SEARCH, Library, documents_block, prompt
from demo.world import SIZES, Question, make_questions, make_world
from searcher.qa.answer import extract_answer, f1
from searcher.qa.tags import ANSWER_CLOSE, ANSWER_OPEN, QUERY_CLOSE, QUERY_OPEN, THINK_CLOSE, asked_query

MAX_SEARCHES = 4
MAX_TURN_TOKENS = 56
BATCH = 64


@dataclass
class Episode:
    question: Question
    ids: list[int]
    """Prompt, policy turns and documents: what the model reads."""
    turns: list[str] = field(default_factory=list)
    """What the policy wrote; documents come between them."""
    num_searches: int = 0
    ended: bool = False
    """Closed itself with the end token."""

    @property
    def answer(self) -> str:
        return extract_answer("".join(self.turns)) or ""

    @property
    def well_formed(self) -> bool:
        """Thinks, answers once, ends; no tag is left over."""
        thought = "[^<]*"
        query = f"{re.escape(QUERY_OPEN)}[^<]*{re.escape(QUERY_CLOSE)}"
        form = rf"(?:{thought}{query})*{thought}{THINK_CLOSE}\s*{ANSWER_OPEN}[^<]*{ANSWER_CLOSE}"
        return self.ended and re.fullmatch(form, "".join(self.turns)) is not None


@dataclass(frozen=True)
class Player:
    model: Qwen2ForCausalLM
    tokenizer: PreTrainedTokenizerBase
    library: Library
    temperature: float
    """0 is greedy."""

    def play(self, questions: list[Question]) -> list[Episode]:
        episodes = [Episode(question, self.tokenizer.encode(prompt(question.text))) for question in questions]
        waiting = episodes
        while waiting:
            for batch in _chunks(waiting, BATCH):
                self.take_turns(batch)
            waiting = [episode for episode in waiting if self.search(episode)]
        return episodes

    @torch.no_grad()
    def take_turns(self, episodes: list[Episode]) -> None:
        stops = [self.tokenizer.eos_token_id, self.tokenizer.convert_tokens_to_ids(QUERY_CLOSE)]
        inputs = self.tokenizer.pad({"input_ids": [e.ids for e in episodes]}, padding_side="left", return_tensors="pt")
        how = {"do_sample": True, "temperature": self.temperature, "top_k": 0} if self.temperature else {}
        rows = self.model.generate(**inputs, max_new_tokens=MAX_TURN_TOKENS, eos_token_id=stops, **how)
        for episode, row in zip(episodes, rows[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            length = next((at + 1 for at, id in enumerate(row) if id in stops), len(row))
            episode.ids += row[:length]
            episode.ended = row[length - 1] == self.tokenizer.eos_token_id
            episode.turns.append(self.tokenizer.decode(row[: length - episode.ended]))

    def search(self, episode: Episode) -> bool:
        """Append the documents that the last turn asked for. False when it asked for none, or once too often."""
        query = asked_query(episode.turns[-1])
        if episode.ended or query is None or episode.num_searches == MAX_SEARCHES:
            return False
        documents = self.library.index.search(query, DOCUMENTS_PER_SEARCH)
        episode.ids += self.tokenizer.encode(documents_block(documents), add_special_tokens=False)
        episode.num_searches += 1
        return True


def _chunks(episodes: list[Episode], size: int) -> Iterator[list[Episode]]:
    """Episodes of like length share a batch, for less padding."""
    episodes = sorted(episodes, key=lambda episode: len(episode.ids))
    for start in range(0, len(episodes), size):
        yield episodes[start : start + size]


def summary(episodes: list[Episode]) -> str:
    def f1_of(hops: int) -> float:
        return fmean(f1(e.answer, e.question.answer) for e in episodes if len(e.question.chain) == hops)

    two_hop = [episode for episode in episodes if len(episode.question.chain) == 2]
    return (
        f"searches {fmean(e.num_searches > 0 for e in episodes):.3f}  "
        f"well-formed {fmean(e.well_formed for e in episodes):.3f}  "
        f"f1 1-hop {f1_of(1):.3f}  2-hop {f1_of(2):.3f}  "
        f"searches per 2-hop question {fmean(e.num_searches for e in two_hop):.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="directory of a model")
    parser.add_argument("--questions", type=int, default=256, help="how many of each number of hops")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=0, help="print this many sampled trajectories")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    world = make_world("test", SIZES["test"], args.seed)
    questions = make_questions(world, (args.questions, args.questions), args.seed)
    model = Qwen2ForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    library = Library.of(world)
    for name, temperature in {"greedy": 0.0, "T=1": 1.0}.items():
        episodes = Player(model, tokenizer, library, temperature).play(questions)
        print(f"{name:6s}  {summary(episodes)}", flush=True)
    for episode in random.Random(args.seed).sample(episodes, args.show):
        print(f"\n{'-' * 100}\n{tokenizer.decode(episode.ids)}\n[right answer: {episode.question.answer}]")


if __name__ == "__main__":
    main()
