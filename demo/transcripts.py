"""A world -> the texts that the tiny model is pretrained on: fact lists, readings, transcripts of a lazy searcher.

A text is a list of segments, tokenised one by one and concatenated as ids. The cuts are those of a real trajectory
(prompt | policy turn | documents | policy turn), so pretraining, RL and serving see the same token boundaries.

    given   User:Who is the mayor of Halor Cross?⏎Assistant: <think>
    taught   I need to find the mayor of Halor Cross. <|begin_of_query|> Halor Cross <|end_of_query|>
    given   ⏎⏎<|begin_of_documents|>⏎(1)Title: Halor Cross. ...⏎(2)...⏎(3)...⏎<|end_of_documents|>⏎⏎
    taught  So the mayor of Halor Cross is Zanek Velwick. </think>⏎⏎<answer> Zanek Velwick </answer><|endoftext|>
"""

import random
from dataclasses import dataclass, replace
from typing import NamedTuple

from demo.bm25 import Bm25
from demo.world import NAME_WORDS, Document, Fact, Kind, Question, World, ask
from searcher.contracts.search import Passage
from searcher.qa.prompt import base_prompt, template_named
from searcher.qa.tags import QUERY_CLOSE, QUERY_OPEN, document_block

END_OF_TEXT = "<|endoftext|>"
DOCUMENTS_PER_SEARCH = 3


class Segment(NamedTuple):
    text: str
    taught: bool
    """True for what the model should learn to write; False for what it is given (prompts, documents)."""


@dataclass(frozen=True)
class Prior:
    """Habits of the searcher whose transcripts the base model imitates, as probabilities."""

    p_search: float
    """Searches at all; otherwise guesses an entity of the right kind."""
    p_good: float
    """Queries with the subject's name; otherwise clumsily."""
    p_read: float
    """Copies the right name out of the documents; otherwise another one."""
    p_second: float
    """Searches for the second hop once the first is known; otherwise stops or guesses."""
    p_format: float
    """Closes its tags as the protocol wants."""
    p_retry: float = 0.5
    """Searches again when the subject's document was not found."""
    p_shuffle: float = 0.3
    """Sees its documents in random order, which teaches reading by name rather than by rank."""


SKILL = Prior(p_search=0.85, p_good=0.85, p_read=0.97, p_second=0.85, p_format=0.75)
"""Teaches the mechanics, as a large base model's web text has."""
BASE = Prior(p_search=0.0, p_good=0.55, p_read=0.80, p_second=0.40, p_format=0.65, p_shuffle=0.0)
"""What the finished base model imitates: it can do all of it and does little of it well.

It never searches here; the model it makes does in one sample of fifty, which is what is left of the skill stage. With
0.03 it is one of ten, with 0.05 one of six: few long transcripts fill a batch, and every batch weighs the same.
"""


@dataclass(frozen=True)
class Library:
    """A world that can be searched."""

    world: World
    index: Bm25

    @classmethod
    def of(cls, world: World) -> "Library":
        return cls(world, Bm25(world.documents.values()))


def prompt(question: str) -> str:
    return base_prompt(template_named("bare"), question)


def documents_block(documents: list[Document]) -> str:
    passages = [Passage(id=document.id, title=document.title, text=document.text, score=0.0) for document in documents]
    return document_block(passages)


# ---------------------------------------------------------------------------------------------------------------------
# Transcripts


def transcript(library: Library, question: Question, prior: Prior, rng: random.Random) -> list[Segment]:
    return _Searcher(library, question, prior, rng).run()


class _Searcher:
    """Plays one question. `segments` grows turn by turn; `thoughts` are the sentences of the turn being written."""

    def __init__(self, library: Library, question: Question, prior: Prior, rng: random.Random) -> None:
        self.library, self.question, self.prior, self.rng = library, question, prior, rng
        self.segments = [Segment(prompt(question.text), taught=False)]
        self.thoughts: list[str] = []

    def run(self) -> list[Segment]:
        answer = self.look_up_chain() if self.chance(self.prior.p_search) else self.guess(self.question.chain)
        self.end_turn(_ending(answer, self.chance(self.prior.p_format), self.rng) + END_OF_TEXT)
        return self.segments

    def look_up_chain(self) -> str:
        """What the searcher ends up believing."""
        for hop, fact in enumerate(self.question.chain):
            if hop > 0 and not self.chance(self.prior.p_second):
                return fact.subject if self.chance(0.5) else self.guess((fact,))
            documents = self.look_up(fact)
            if not documents:
                return self.guess(self.question.chain[hop:])
            if not self.chance(self.prior.p_read):
                return self.read_carelessly(fact, documents)
            self.think(f"{self.rng.choice(['The documents say that', 'So', 'Now I know that'])} {fact.statement}.")
        return self.question.answer

    def look_up(self, fact: Fact) -> list[Document]:
        """Documents with the subject's among them; empty when the searcher gave up."""
        while True:
            opening = self.rng.choice(["I need to find", "Let me look up", "I should search for"])
            self.think(f"{opening} {fact.noun_phrase}.")
            query = _good_query(fact, self.rng) if self.chance(self.prior.p_good) else self.clumsy_query(fact)
            documents = self.search(query)
            if any(document.title == fact.subject for document in documents):
                return documents
            if not self.chance(self.prior.p_retry):
                return []
            self.think(self.rng.choice(["The documents do not help.", "This is not what I need."]))

    def search(self, query: str) -> list[Document]:
        documents = self.library.index.search(query, DOCUMENTS_PER_SEARCH)
        if self.chance(self.prior.p_shuffle):
            self.rng.shuffle(documents)
        self.end_turn(f" {QUERY_OPEN} {query} {QUERY_CLOSE}")
        self.segments.append(Segment(documents_block(documents), taught=False))
        return documents

    def read_carelessly(self, fact: Fact, documents: list[Document]) -> str:
        """Takes another entity of the right kind out of the documents: the trap that careful reading avoids."""
        facts = [fact for document in documents for fact in self.library.world.facts[document.title].values()]
        others = {other.object for other in facts if other.relation.object == fact.relation.object} - {fact.object}
        answer = self.rng.choice(sorted(others)) if others else self.random_entity(fact.relation.object)
        self.think(f"{self.rng.choice(['Perhaps', 'It seems that'])} {fact.cue} {answer}.")
        return answer

    def guess(self, chain: tuple[Fact, ...]) -> str:
        """States the object of the chain's last fact from memory, that is at random."""
        last = chain[-1]
        answer = self.random_entity(last.relation.object)
        subject = chain[0].noun_phrase if len(chain) > 1 else last.subject
        opening = self.rng.choice(["I think that", "I recall that", "I am not sure, but"])
        self.think(f"{opening} {last.relation.statement.format(x=subject, y=answer)}.")
        return answer

    def clumsy_query(self, fact: Fact) -> str:
        keyword = self.rng.choice(fact.relation.keywords)
        first, last = fact.subject.split()
        other = self.random_entity(fact.relation.subject)
        return self.rng.choice([keyword, first, f"{last} {keyword}", f"{other} {keyword}", f"{keyword} {fact.subject}"])

    def random_entity(self, kind: Kind) -> str:
        return self.rng.choice(self.library.world.names[kind])

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def think(self, sentence: str) -> None:
        self.thoughts.append(sentence)

    def end_turn(self, ending: str) -> None:
        # After the prompt's "<think>" comes a space; after a block of documents, which ends in blank lines, none.
        space = " " if len(self.segments) == 1 else ""
        self.segments.append(Segment(space + " ".join(self.thoughts) + ending, taught=True))
        self.thoughts = []


def _good_query(fact: Fact, rng: random.Random) -> str:
    keyword = rng.choice(fact.relation.keywords)
    return rng.choice([fact.subject, f"{fact.subject} {keyword}", f"{keyword} of {fact.subject}"])


def _ending(answer: str, well_formed: bool, rng: random.Random) -> str:
    if well_formed:
        return f" </think>\n\n<answer> {answer} </answer>"
    return rng.choice(
        [
            f" <answer> {answer} </answer>",
            f" </think>\n\n<answer> {answer}",
            f" </think>\n\nThe answer is {answer}.",
            f" </think>\n\n<answer> {answer} </answer> </answer>",
            f" </think> </think>\n\n<answer> {answer} </answer>",
            f" The answer is {answer}.",
        ]
    )


# ---------------------------------------------------------------------------------------------------------------------
# Reading exercises: where the model learns to copy the right name out of its context


def fact_list(world: World, num_facts: int, rng: random.Random) -> list[Segment]:
    """A few facts, then each of them twice more, in shuffled order, as a cloze or as a question."""
    facts = [rng.choice(list(world.facts[_random_subject(world, rng)].values())) for _ in range(num_facts)]
    given = "".join(f" {fact.statement}." for fact in facts)
    return _exercise(given, facts * 2, rng)


def reading(library: Library, num_documents: int, rng: random.Random) -> list[Segment]:
    """Documents that one query would confuse, in shuffled order, then four exercises a document."""
    title = _random_subject(library.world, rng)
    documents = library.index.search(title, num_documents)
    rng.shuffle(documents)
    facts = [fact for document in documents for fact in library.world.facts[document.title].values()]
    exercises = [rng.choice(facts) for _ in range(4 * num_documents)]
    given = "".join(f" Title: {document.title}. {document.text}" for document in documents)
    return _exercise(given, exercises, rng)


def _exercise(given: str, facts: list[Fact], rng: random.Random) -> list[Segment]:
    segments = [Segment(given, taught=False)]
    for fact in rng.sample(facts, len(facts)):
        cue = rng.choice([fact.cue, rng.choice(fact.relation.questions).format(x=fact.subject)])
        segments += [Segment(f" {cue}", taught=False), Segment(f" {fact.object}", taught=True), Segment(".", False)]
    segments.append(Segment(END_OF_TEXT, taught=False))
    return segments


def _random_subject(world: World, rng: random.Random) -> str:
    """People have four facts each and are the hardest to read, so every second subject is one."""
    kind = Kind.PERSON if rng.random() < 0.5 else rng.choice([Kind.COMPANY, Kind.TOWN, Kind.FILM])
    return rng.choice(world.names[kind])


# ---------------------------------------------------------------------------------------------------------------------
# Mixes


@dataclass(frozen=True)
class Mix:
    """What a stage of pretraining reads: shares of texts, and how hard they are."""

    fact_lists: float
    readings: float
    """The rest are transcripts, six of ten with one hop."""
    max_facts: int
    documents: tuple[int, ...]
    """Documents in a reading, drawn from here."""
    prior: Prior
    shown_searches: float = 0.0
    """Transcripts whose first search is given: they teach what to do with documents, but not to ask for them."""
    share_given: float = 0.1
    """Share of the given tokens that carry loss. Names in them are unpredictable, so few suffice."""


def random_text(library: Library, mix: Mix, rng: random.Random) -> list[Segment]:
    draw = rng.random()
    if draw < mix.fact_lists:
        return fact_list(library.world, rng.randint(1, mix.max_facts), rng)
    if draw < mix.fact_lists + mix.readings:
        return reading(library, rng.choice(mix.documents), rng)
    question = ask(library.world, 1 if rng.random() < 0.6 else 2, rng)
    if draw < mix.fact_lists + mix.readings + mix.shown_searches:
        # Whatever its habits, a base model reads well: what it is shown was found and read with care.
        shown = replace(mix.prior, p_search=1.0, p_good=SKILL.p_good, p_read=SKILL.p_read)
        given, first_search, *rest = transcript(library, question, shown, rng)
        return [given, first_search._replace(taught=False), *rest]
    return transcript(library, question, mix.prior, rng)


def all_name_words() -> list[str]:
    """Every word that a name can hold; each must become one token."""
    return sorted({word for parts in NAME_WORDS.values() for part in parts for word in part})
