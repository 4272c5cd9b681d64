import json
import random
from itertools import chain

import pytest

from demo.world import (
    NUM_QUESTIONS,
    RELATIONS,
    SIZES,
    TWO_HOPS,
    Kind,
    Split,
    World,
    WorldSize,
    ask,
    corpus_rows,
    make_questions,
    make_world,
    names_of,
    question_rows,
)

SMALL = WorldSize(people=40, companies=12, towns=12, films=12)


def held_out_world() -> World:
    return make_world("test", SIZES["test"], seed=1)


def test_the_same_seed_makes_the_same_world_and_questions() -> None:
    first, second = (make_world("train", SMALL, seed=7) for _ in range(2))

    assert list(corpus_rows(first)) == list(corpus_rows(second))
    assert make_questions(first, (20, 20), seed=3) == make_questions(second, (20, 20), seed=3)


def test_another_seed_makes_another_world() -> None:
    first, second = (make_world("train", SMALL, seed=seed) for seed in (1, 2))

    assert list(corpus_rows(first)) != list(corpus_rows(second))


def test_no_entity_lives_in_both_splits() -> None:
    for kind in Kind:
        assert not set(names_of(kind, "train")) & set(names_of(kind, "test"))

    def entities(world: World) -> set[str]:
        return set(chain.from_iterable(world.names.values()))

    assert not entities(make_world("train", SIZES["train"], seed=1)) & entities(held_out_world())


def test_a_name_belongs_to_one_kind() -> None:
    names = [name for kind in Kind for split in ("train", "test") for name in names_of(kind, split)]

    assert len(names) == len(set(names))


def test_every_fact_is_stated_in_its_subjects_document() -> None:
    world = held_out_world()

    for title, facts in world.facts.items():
        assert all(fact.object in world.documents[title].text for fact in facts.values())


def test_a_document_names_each_of_its_objects_once() -> None:
    for facts in held_out_world().facts.values():
        objects = [fact.object for fact in facts.values()]
        assert len(objects) == len(set(objects))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_world_has_the_advertised_documents_and_questions(split: Split) -> None:
    world = make_world(split, SIZES[split], seed=1)
    questions = make_questions(world, NUM_QUESTIONS[split], seed=1)

    assert len(world.documents) == SIZES[split].num_documents
    assert tuple(sum(len(q.chain) == hops for q in questions) for hops in (1, 2)) == NUM_QUESTIONS[split]
    assert len({question.text for question in questions}) == len(questions)


def test_a_question_row_points_to_the_documents_that_answer_it() -> None:
    world = held_out_world()
    text_of = {str(row["id"]): str(row["text"]) for row in corpus_rows(world)}

    for row in question_rows(world, make_questions(world, (100, 100), seed=1)):
        row = json.loads(json.dumps(row))
        assert len(row["gold_ids"]) == len(row["gold_titles"]) == row["hops"]
        assert row["answers"][0] in text_of[row["gold_ids"][-1]]
        if row["hops"] == 2:
            assert row["gold_titles"][1] in text_of[row["gold_ids"][0]]


def test_a_two_hop_question_has_one_chain_of_facts() -> None:
    world = held_out_world()
    chains: dict[str, set[tuple[str, str]]] = {}
    for first, second in TWO_HOPS:
        for subject in world.names[first.subject]:
            bridge = world.facts[subject][first.name]
            text = second.questions[0].format(x=bridge.noun_phrase)
            chains.setdefault(text, set()).add((bridge.object, world.facts[bridge.object][second.name].object))

    questions = [ask(world, 2, random.Random(seed)) for seed in range(200)]

    for question in questions:
        assert chains[question.text] == {(question.chain[0].object, question.answer)}


def test_there_are_thirty_five_kinds_of_two_hop_question() -> None:
    assert len(TWO_HOPS) == 35


def test_a_statement_ends_in_its_object() -> None:
    assert all(relation.statement.endswith("{y}") for relation in RELATIONS)
