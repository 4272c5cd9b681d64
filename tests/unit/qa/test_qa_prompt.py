"""The published prompts, typed in here a second time, line by line (R1-Searcher, prompts_dataset.py)."""

import pytest

from searcher.contracts.errors import InvalidInput
from searcher.contracts.question import SearchMode
from searcher.qa.answer import extract_answer
from searcher.qa.prompt import TEMPLATES, base_prompt, chat_messages, template_named
from searcher.qa.tags import DOCUMENTS_OPEN, QUERY_OPEN, asked_query

BASE = (
    "The User asks a question, and the Assistant solves it.\n"
    "The Assistant first thinks about the reasoning process in the mind and then provides the User with the final "
    "answer.\n"
    "The output format of reasoning process and final answer are enclosed within <think> </think> and <answer> "
    '</answer> tags, respectively, i.e., "<think> reasoning process here </think>\n'
    "\n"
    '<answer> final answer here </answer>".\n'
    "During the thinking process, **the Assistant can perform searching** for uncertain knowledge if necessary with "
    'the format of "<|begin_of_query|> search query (only list keywords, such as **"keyword_1 keyword_2 ..."**)'
    '<|end_of_query|>". **A query must involve only a single triple**.\n'
    "Then, the search system will provide the Assistant with the retrieval information with the format of "
    '"<|begin_of_documents|> ...search results... <|end_of_documents|>".\n'
    "\n"
    "User:Who wrote Emma?\n"
    "Assistant: <think>"
)

CHAT_SYSTEM = (
    "You are a helpful assistant.\n"
    "Given a question, you should answer it by first thinking about the reasoning process in the mind and then "
    "providing the final answer.\n"
    "The output format of reasoning process and final answer are enclosed within <think> </think> and <answer> "
    '</answer> tags, respectively, i.e., "<think> reasoning process here </think>\n'
    "\n"
    '<answer> final answer here </answer>".\n'
    "During the thinking process, **you can perform searching for uncertain knowledge** if necessary with the format "
    'of "<|begin_of_query|> search query (only list keywords, such as **"keyword_1 keyword_2 ..."**)'
    '<|end_of_query|>". **A query must involve only a single triple**.\n'
    "Then, the search system will provide you with the retrieval information with the format of "
    '"<|begin_of_documents|> ...search results... <|end_of_documents|>".'
)


def test_the_base_prompt_is_the_published_one_character_for_character() -> None:
    assert base_prompt(template_named("r1-searcher-base"), "Who wrote Emma?") == BASE


def test_the_chat_prompt_is_the_published_one_character_for_character() -> None:
    assert chat_messages(template_named("r1-searcher-chat"), "Who wrote Emma?") == [
        {"role": "system", "content": CHAT_SYSTEM},
        {"role": "user", "content": "Who wrote Emma?"},
    ]


def test_the_bare_prompt_is_the_end_of_the_base_prompt() -> None:
    bare = base_prompt(template_named("bare"), "Who wrote Emma?")

    assert bare == "User:Who wrote Emma?\nAssistant: <think>" and BASE.endswith(bare)


def test_a_question_with_braces_is_asked_as_it_is() -> None:
    prompt = base_prompt(template_named("bare"), "What is {question} or {0} in %s?")

    assert prompt == "User:What is {question} or {0} in %s?\nAssistant: <think>"


@pytest.mark.parametrize("name", [name for name, template in TEMPLATES.items() if not template.chat])
def test_the_policy_starts_to_write_inside_a_thought(name: str) -> None:
    assert base_prompt(template_named(name), "?").endswith("<think>")


def test_an_unknown_template_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match=r"'r1' is not one of bare, r1-searcher-base, r1-searcher-chat"):
        template_named("r1")


def test_an_example_is_an_earlier_exchange_in_the_protocol_of_a_good_response() -> None:
    system, asked, answered, question = chat_messages(template_named("r1-searcher-chat-one-shot"), "Who?")

    assert [m["role"] for m in (system, asked, answered, question)] == ["system", "user", "assistant", "user"]
    assert system == chat_messages(template_named("r1-searcher-chat"), "Who?")[0]
    assert question["content"] == "Who?"
    first_turn = answered["content"].partition("\n\n<|begin_of_documents|>")[0]
    assert asked_query(first_turn) == "Edvard Munch birthplace"
    assert extract_answer(answered["content"]) == "Norway"


def all_text(name: str, search: SearchMode) -> str:
    template = template_named(name, search)
    if not template.chat:
        return base_prompt(template, "Who?")
    return "\n".join(message["content"] for message in chat_messages(template, "Who?"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_baseline_is_not_told_that_it_may_search(name: str) -> None:
    assert QUERY_OPEN not in all_text(name, SearchMode.NONE)
    assert QUERY_OPEN not in all_text(name, SearchMode.ONCE)
    assert DOCUMENTS_OPEN not in all_text(name, SearchMode.NONE)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "bare"])
def test_a_baseline_that_searched_once_is_told_what_the_documents_are(name: str) -> None:
    assert DOCUMENTS_OPEN in all_text(name, SearchMode.ONCE)


@pytest.mark.parametrize("search", SearchMode)
def test_every_counterpart_asks_in_the_same_frame(search: SearchMode) -> None:
    base = all_text("r1-searcher-base", search)
    opening = BASE.partition("During the thinking process")[0]
    _, asked, answered, question = chat_messages(template_named("r1-searcher-chat-one-shot", search), "Who?")

    assert base.startswith(opening)
    assert base.endswith("\nUser:Who?\nAssistant: <think>")
    assert all_text("bare", search) == "User:Who?\nAssistant: <think>"
    assert (asked["role"], question["content"]) == ("user", "Who?")
    assert answered["content"].startswith("<think>")
    assert extract_answer(answered["content"]) == "Norway"
