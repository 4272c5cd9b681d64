import random
import re
from dataclasses import replace

from demo.transcripts import SKILL, Library, Mix, Prior, Segment, fact_list, random_text, reading, transcript
from demo.world import World, WorldSize, ask, make_world
from searcher.qa.tags import TAGS

FLAWLESS = Prior(p_search=1, p_good=1, p_read=1, p_second=1, p_format=1)


def small_library() -> Library:
    return Library.of(make_world("train", WorldSize(people=200, companies=40, towns=40, films=40), seed=1))


def written(text: list[Segment]) -> str:
    return "".join(segment.text for segment in text if segment.taught)


def test_a_flawless_searcher_looks_up_each_hop_and_answers_right() -> None:
    library, rng = small_library(), random.Random(0)

    for hops in (1, 2) * 50:
        question = ask(library.world, 1 if hops == 1 else 2, rng)
        text = transcript(library, question, FLAWLESS, rng)
        assert written(text).count("<|begin_of_query|>") == hops
        assert written(text).endswith(f" </think>\n\n<answer> {question.answer} </answer><|endoftext|>")


def test_a_well_formed_searcher_never_breaks_the_format_however_badly_it_searches() -> None:
    library, rng = small_library(), random.Random(0)
    clumsy = Prior(p_search=0.7, p_good=0.2, p_read=0.5, p_second=0.5, p_format=1)

    for _ in range(200):
        text = written(transcript(library, ask(library.world, rng.choice([1, 2]), rng), clumsy, rng))
        assert re.fullmatch(r"[^<]*(<\|begin_of_query\|> [^<]+ <\|end_of_query\|>[^<]*)*", text.split("</think>")[0])
        assert re.fullmatch(r"\n\n<answer> [^<]+ </answer><\|endoftext\|>", text.split("</think>")[1])


def test_a_broken_ending_is_missing_or_doubling_a_tag() -> None:
    library, rng = small_library(), random.Random(0)
    sloppy = replace(FLAWLESS, p_format=0)

    for _ in range(100):
        text = written(transcript(library, ask(library.world, 1, rng), sloppy, rng))
        assert [text.count(tag) for tag in ("</think>", "<answer>", "</answer>")] != [1, 1, 1]
        assert text.endswith("<|endoftext|>")


def test_a_searcher_that_does_not_search_only_guesses() -> None:
    library, rng = small_library(), random.Random(0)

    text = transcript(library, ask(library.world, 2, rng), replace(FLAWLESS, p_search=0), rng)

    assert [segment.taught for segment in text] == [False, True]
    assert "<|begin_of_query|>" not in written(text)


def test_documents_stand_between_the_turns_and_are_not_taught() -> None:
    library, rng = small_library(), random.Random(0)

    prompt, first_turn, documents, second_turn = transcript(library, ask(library.world, 1, rng), FLAWLESS, rng)

    assert prompt.text.endswith("<think>")
    assert first_turn.text.startswith(" ")
    assert first_turn.text.endswith(" <|end_of_query|>")
    assert documents.text.startswith("\n\n<|begin_of_documents|>\n(1)Title: ")
    assert documents.text.endswith("\n<|end_of_documents|>\n\n")
    assert not second_turn.text.startswith(" ")
    assert [prompt.taught, first_turn.taught, documents.taught, second_turn.taught] == [False, True, False, True]


def test_an_exercise_does_not_give_its_answer_away() -> None:
    library, rng = small_library(), random.Random(0)

    for _ in range(50):
        _, *exercises = fact_list(library.world, 4, rng)
        for cue, answer in zip(exercises[0::3], exercises[1::3], strict=False):
            assert answer.taught
            assert answer.text not in cue.text


def stated_objects(world: World) -> set[str]:
    return {fact.object for facts in world.facts.values() for fact in facts.values()}


def test_reading_exercises_ask_only_for_what_was_given() -> None:
    library, rng = small_library(), random.Random(0)

    for text in [reading(library, 3, rng), fact_list(library.world, 8, rng)]:
        given, *exercises = text
        answers = [segment.text for segment in exercises if segment.taught]
        assert answers
        assert all(answer.startswith(" ") and answer in given.text for answer in answers)
        assert {answer.strip() for answer in answers} <= stated_objects(library.world)
        assert not any(tag in segment.text for segment in text for tag in TAGS)


def test_a_shown_search_is_given_and_what_follows_it_is_taught() -> None:
    library = small_library()
    mix = Mix(
        fact_lists=0, readings=0, shown_searches=1, max_facts=1, documents=(1,), prior=replace(FLAWLESS, p_search=0)
    )

    prompt, search, documents, reading, *_ = random_text(library, mix, random.Random(0))

    assert "<|begin_of_query|>" in search.text
    assert [prompt.taught, search.taught, documents.taught, reading.taught] == [False, False, False, True]


def test_the_same_seed_writes_the_same_texts() -> None:
    library = small_library()
    mix = Mix(fact_lists=0.3, readings=0.3, max_facts=4, documents=(1, 2, 3), prior=SKILL)

    first, second = [
        [random_text(library, mix, rng) for _ in range(50)] for rng in (random.Random(5), random.Random(5))
    ]

    assert first == second
