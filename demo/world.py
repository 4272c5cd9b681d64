"""Seed -> a fictional world: entities, facts, documents, questions. Standard library only.

`python -m demo.world --split train --seed 1 --out DIR` writes corpus.jsonl and questions.jsonl. Models and searching
are left to the other modules.

Every name is two words out of a small stock, so a held-out entity is an unseen combination of seen words:
a model cannot have memorised its facts, and still reads its name as two known tokens.
"""

import argparse
import hashlib
import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Literal

Split = Literal["train", "test"]


class Kind(StrEnum):
    PERSON = "person"
    COMPANY = "company"
    TOWN = "town"
    FILM = "film"
    COUNTRY = "country"
    """The only kind without documents of its own: countries are answers, never subjects."""


# ---------------------------------------------------------------------------------------------------------------------
# Names

STEMS = ("Bel", "Dra", "Kor", "Mar", "Nel", "Osk", "Pav", "Ral", "Sil", "Tor", "Vel", "Zan", "Lum", "Fen", "Gar", "Hal")


def _words(text: str) -> list[str]:
    return text.split()


def _stems_with(*endings: str) -> list[str]:
    return [stem + ending for stem in STEMS for ending in endings]


NAME_WORDS: dict[Kind, tuple[list[str], list[str]]] = {
    Kind.PERSON: (
        _stems_with("a", "en", "in", "is", "us", "ek"),
        _stems_with("son", "ov", "ard", "elli", "quist", "wick", "mann", "ett"),
    ),
    Kind.COMPANY: (
        _stems_with("tek", "co", "ex", "lix"),
        _words("Systems Works Group Labs Motors Energy Foods Press Partners Industries"),
    ),
    Kind.TOWN: (
        _stems_with("by", "um", "or"),
        _words("Harbor Falls Bay Grove Ridge Valley Springs Heights Bridge Field Point Hill Cross Lake"),
    ),
    Kind.FILM: (
        _words(
            "Iron Silent Golden Broken Hidden Crimson Frozen Distant Burning Hollow Silver Savage "
            "Gentle Endless Secret Wild Bitter Bright Ancient Restless Velvet Lonely Fearless Scarlet"
        ),
        _words(
            "Crown River Garden Shadow Mirror Horizon Island Winter Promise Journey Empire Orchard "
            "Kitchen Thunder Letter Forest Dancer Harvest Lantern Voyage Castle Desert Sparrow Machine"
        ),
    ),
    Kind.COUNTRY: (_stems_with("ia", "land"), _words("Republic Kingdom Federation Union Islands")),
}
"""First and second words of the names of each kind."""


def split_of(name: str) -> Split:
    """The split that owns a name. A hash of the name alone, so worlds of different splits never share an entity."""
    return "test" if int(hashlib.md5(name.encode()).hexdigest(), 16) % 10 < 3 else "train"


@cache
def names_of(kind: Kind, split: Split) -> tuple[str, ...]:
    names = (" ".join(words) for words in itertools.product(*NAME_WORDS[kind]))
    return tuple(name for name in names if split_of(name) == split)


# ---------------------------------------------------------------------------------------------------------------------
# Relations: how a fact is stated, asked, named and searched for


@dataclass(frozen=True)
class Relation:
    name: str
    subject: Kind
    object: Kind
    sentences: tuple[str, ...]
    """Document sentences that name the subject {x} and the object {y}; {job} is filled with a random occupation."""
    pronoun_sentences: tuple[str, ...]
    """Document sentences that call the subject {He} or {His}."""
    questions: tuple[str, ...]
    """Ways to ask for the object; the first also asks the second hop of a 2-hop question."""
    noun_phrase: str
    """The object, described by its subject: the first hop of a 2-hop question, and what the model says it looks for."""
    statement: str
    """One clause without full stop that ends in the object, so that all before {y} can be read as a cloze."""
    keywords: tuple[str, ...]
    """Words that a query may use for the relation."""


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "birthplace", Kind.PERSON, Kind.TOWN,
        ("{x} (born in {y}) is a {job}.", "{x} is a {job} from {y}.", "{x} was born in {y}."),
        ("{He} was born in {y}.", "{He} grew up in {y}, {his} birthplace."),
        ("Where was {x} born?", "In which town was {x} born?", "What is the birthplace of {x}?"),
        "the birthplace of {x}", "{x} was born in {y}", ("birthplace", "born"),
    ),
    Relation(
        "mother", Kind.PERSON, Kind.PERSON,
        ("The mother of {x} is {y}.", "{x} has {y} as a mother.", "{x} is the child of mother {y}."),
        ("{His} mother is {y}.", "{He} was raised by {his} mother {y}."),
        ("Who is the mother of {x}?", "What is the name of the mother of {x}?"),
        "the mother of {x}", "the mother of {x} is {y}", ("mother",),
    ),
    Relation(
        "spouse", Kind.PERSON, Kind.PERSON,
        ("{x} is married to {y}.", "The spouse of {x} is {y}.", "{x} and {y} are a married couple."),
        ("{He} is married to {y}.", "{His} spouse is {y}."),
        ("Who is the spouse of {x}?", "To whom is {x} married?", "Who is married to {x}?"),
        "the spouse of {x}", "{x} is married to {y}", ("spouse", "married"),
    ),
    Relation(
        "employer", Kind.PERSON, Kind.COMPANY,
        ("{x} works for {y}.", "{x} is employed by {y}.", "The employer of {x} is {y}."),
        ("{He} works for {y}.", "{His} employer is {y}."),
        ("Which company does {x} work for?", "Who is the employer of {x}?"),
        "the employer of {x}", "{x} works for {y}", ("employer", "works"),
    ),
    Relation(
        "headquarters", Kind.COMPANY, Kind.TOWN,
        ("{x} is based in {y}.", "{x} is a company from {y}.", "The headquarters of {x} are in {y}."),
        ("{He} is based in {y}.", "{His} headquarters are in {y}."),
        ("Where is {x} based?", "In which town is {x} based?"),
        "the home town of {x}", "{x} is based in {y}", ("headquarters", "based"),
    ),
    Relation(
        "founder", Kind.COMPANY, Kind.PERSON,
        ("{x} was founded by {y}.", "The founder of {x} is {y}.", "{x} is a company started by {y}."),
        ("{He} was founded by {y}.", "{His} founder is {y}."),
        ("Who is the founder of {x}?", "Who founded {x}?"),
        "the founder of {x}", "{x} was founded by {y}", ("founder", "founded"),
    ),
    Relation(
        "head", Kind.COMPANY, Kind.PERSON,
        ("The head of {x} is {y}.", "{x} is led by {y}.", "{x} has a head called {y}."),
        ("{His} head is {y}.", "{He} is led by {y}."),
        ("Who is the head of {x}?", "Who leads {x}?"),
        "the head of {x}", "the head of {x} is {y}", ("head", "leads"),
    ),
    Relation(
        "country", Kind.TOWN, Kind.COUNTRY,
        ("{x} is a town in {y}.", "{x} lies in {y}.", "The country of {x} is {y}."),
        ("{He} is a town in {y}.", "{He} lies in {y}."),
        ("In which country is {x}?", "What is the country of {x}?", "Which country does {x} lie in?"),
        "the country of {x}", "{x} lies in {y}", ("country",),
    ),
    Relation(
        "mayor", Kind.TOWN, Kind.PERSON,
        ("The mayor of {x} is {y}.", "{x} is a town with the mayor {y}.", "{x} is governed by mayor {y}."),
        ("{His} mayor is {y}.", "{He} is governed by mayor {y}."),
        ("Who is the mayor of {x}?", "What is the name of the mayor of {x}?"),
        "the mayor of {x}", "the mayor of {x} is {y}", ("mayor",),
    ),
    Relation(
        "director", Kind.FILM, Kind.PERSON,
        ("{x} was directed by {y}.", "The director of {x} is {y}.", "{x} is a film by {y}."),
        ("{He} was directed by {y}.", "{His} director is {y}."),
        ("Who is the director of {x}?", "Who directed {x}?"),
        "the director of {x}", "{x} was directed by {y}", ("director", "directed"),
    ),
    Relation(
        "star", Kind.FILM, Kind.PERSON,
        ("{x} stars {y}.", "The star of {x} is {y}.", "{x} is a film with {y} as its star."),
        ("{He} stars {y}.", "{His} star is {y}."),
        ("Who is the star of {x}?", "Who stars in {x}?"),
        "the star of {x}", "the star of {x} is {y}", ("star", "stars"),
    ),
)  # fmt: skip

TWO_HOPS: tuple[tuple[Relation, Relation], ...] = tuple(
    (first, second) for first in RELATIONS for second in RELATIONS if first.object == second.subject
)

JOBS = _words("teacher painter doctor lawyer farmer singer writer pilot baker builder chemist dancer")
PRONOUNS = {"she": ("She", "Her", "her"), "he": ("He", "His", "his"), "it": ("It", "Its", "its")}
P_PRONOUN = 0.45
"""Share of a document's later sentences that leave out the subject's name: about a third of all sentences."""


# ---------------------------------------------------------------------------------------------------------------------
# Worlds


@dataclass(frozen=True)
class Fact:
    subject: str
    relation: Relation
    object: str

    @property
    def statement(self) -> str:
        return f"{self.cue} {self.object}"

    @property
    def cue(self) -> str:
        """The statement up to its object."""
        return self.relation.statement.format(x=self.subject, y="").rstrip()

    @property
    def noun_phrase(self) -> str:
        return self.relation.noun_phrase.format(x=self.subject)


@dataclass(frozen=True)
class Document:
    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Question:
    id: str
    text: str
    chain: tuple[Fact, ...]
    """The facts to look up, one for each hop; the object of one is the subject of the next."""

    @property
    def answer(self) -> str:
        return self.chain[-1].object


@dataclass(frozen=True)
class WorldSize:
    people: int
    companies: int
    towns: int
    films: int

    @property
    def num_documents(self) -> int:
        return self.people + self.companies + self.towns + self.films


SIZES: dict[Split, WorldSize] = {
    "train": WorldSize(people=2000, companies=350, towns=300, films=350),
    # About 30 % of all names belong to the test split, which bounds this one.
    "test": WorldSize(people=1500, companies=170, towns=170, films=150),
}
NUM_QUESTIONS: dict[Split, tuple[int, int]] = {"train": (2400, 1600), "test": (300, 300)}
"""1-hop and 2-hop questions that the command line writes."""


@dataclass(frozen=True)
class World:
    split: Split
    names: dict[Kind, list[str]]
    facts: dict[str, dict[str, Fact]]
    """Subject -> relation name -> the one fact: every question has exactly one answer."""
    documents: dict[str, Document]
    """By title, which is the subject's name."""


def make_world(split: Split, size: WorldSize, seed: int) -> World:
    rng = random.Random(seed)
    counts = {
        Kind.PERSON: size.people,
        Kind.COMPANY: size.companies,
        Kind.TOWN: size.towns,
        Kind.FILM: size.films,
    }
    names = {kind: rng.sample(names_of(kind, split), count) for kind, count in counts.items()}
    names[Kind.COUNTRY] = list(names_of(Kind.COUNTRY, split))

    subjects = [(name, kind) for kind in counts for name in names[kind]]
    facts = {name: _facts_about(name, kind, names, rng) for name, kind in subjects}
    documents = {
        name: Document(id=f"{split}-{number:05d}", title=name, text=_document_text(list(facts[name].values()), rng))
        for number, (name, _) in enumerate(subjects)
    }
    return World(split, names, facts, documents)


def _facts_about(name: str, kind: Kind, names: dict[Kind, list[str]], rng: random.Random) -> dict[str, Fact]:
    facts: dict[str, Fact] = {}
    taken = {name}  # one entity plays one part in a document, so that each fact names another object
    for relation in RELATIONS:
        if relation.subject == kind:
            answer = next(name for name in rng.sample(names[relation.object], 6) if name not in taken)
            taken.add(answer)
            facts[relation.name] = Fact(name, relation, answer)
    return facts


def _document_text(facts: list[Fact], rng: random.Random) -> str:
    person = facts[0].relation.subject == Kind.PERSON
    He, His, his = PRONOUNS[rng.choice(["she", "he"]) if person else "it"]
    sentences: list[str] = []
    for fact in rng.sample(facts, len(facts)):
        use_pronoun = bool(sentences) and rng.random() < P_PRONOUN
        template = rng.choice(fact.relation.pronoun_sentences if use_pronoun else fact.relation.sentences)
        sentences.append(template.format(x=fact.subject, y=fact.object, job=rng.choice(JOBS), He=He, His=His, his=his))
    return " ".join(sentences)


# ---------------------------------------------------------------------------------------------------------------------
# Questions


def ask(world: World, hops: int, rng: random.Random, id: str = "") -> Question:
    """One random question; relations (or pairs of them) are equally likely. A chain never comes back to its start."""
    if hops == 1:
        relation = rng.choice(RELATIONS)
        fact = world.facts[rng.choice(world.names[relation.subject])][relation.name]
        return Question(id, rng.choice(relation.questions).format(x=fact.subject), (fact,))
    first, second = rng.choice(TWO_HOPS)
    while True:
        bridge = world.facts[rng.choice(world.names[first.subject])][first.name]
        last = world.facts[bridge.object][second.name]
        if last.object != bridge.subject:
            return Question(id, second.questions[0].format(x=bridge.noun_phrase), (bridge, last))


def make_questions(world: World, counts: tuple[int, int], seed: int) -> list[Question]:
    """`counts` distinct 1-hop and 2-hop questions, shuffled, so that every prefix holds both kinds."""
    rng = random.Random(seed)
    hops = [1] * counts[0] + [2] * counts[1]
    rng.shuffle(hops)
    seen: set[str] = set()
    questions = []
    for number, num_hops in enumerate(hops):
        question = ask(world, num_hops, rng, id=f"{world.split}-q{number:05d}")
        while question.text in seen:
            question = ask(world, num_hops, rng, id=question.id)
        seen.add(question.text)
        questions.append(question)
    return questions


# ---------------------------------------------------------------------------------------------------------------------
# Files


def corpus_rows(world: World) -> Iterator[dict[str, object]]:
    for document in world.documents.values():
        yield {"id": document.id, "title": document.title, "text": document.text}


def question_rows(world: World, questions: list[Question]) -> Iterator[dict[str, object]]:
    for question in questions:
        gold = [world.documents[fact.subject] for fact in question.chain]
        yield {
            "id": question.id,
            "question": question.text,
            "answers": [question.answer],
            "hops": len(question.chain),
            "gold_titles": [document.title for document in gold],
            "gold_ids": [document.id for document in gold],
        }


def _write_jsonl(path: Path, rows: Iterator[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_world(split: Split, seed: int, out: Path) -> None:
    world = make_world(split, SIZES[split], seed)
    questions = make_questions(world, NUM_QUESTIONS[split], seed)
    out.mkdir(parents=True, exist_ok=True)
    _write_jsonl(out / "corpus.jsonl", corpus_rows(world))
    _write_jsonl(out / "questions.jsonl", question_rows(world, questions))


def write_worlds(out: Path) -> None:
    """The two worlds of the demo: one to train in, one to be examined in."""
    write_world("train", 1, out / "train")
    write_world("test", 1, out / "heldout")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a fictional world as corpus.jsonl and questions.jsonl.")
    parser.add_argument("--split", choices=["train", "test"], required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    write_world(args.split, args.seed, args.out)


if __name__ == "__main__":
    main()
