"""Prompt templates by name: question -> the text (or chat messages) after which the policy starts to write.

Every template ends in a pre-filled `<think>`, so a response never contains one. The texts of the `r1-searcher-*`
templates are the published ones, character for character.

A template has a counterpart for each way of searching less, as similar as can be: a baseline is asked in the words
that the policy is asked in, without those about searching. Documents of a baseline that searches once stand where the
thought begins, in the block that the policy knows:

    none    … User:QUESTION\nAssistant: <think>
    once    … User:QUESTION\nAssistant: <think>\n\n<|begin_of_documents|>\n(1)…<|end_of_documents|>\n\n
"""

from collections.abc import Mapping
from dataclasses import dataclass

from searcher.contracts.errors import InvalidInput
from searcher.contracts.question import SearchMode
from searcher.qa.tags import THINK_OPEN


@dataclass(frozen=True)
class Template:
    """A base template is one text; a chat template is a system text, rendered by the model's own chat template."""

    name: str
    text: str
    chat: bool = False
    example: tuple[str, str] | None = None
    """A worked question and its response, shown as an earlier exchange: small models copy what they cannot be told."""


_R1_BASE = """\
The User asks a question, and the Assistant solves it.
The Assistant first thinks about the reasoning process in the mind and then provides the User with the final answer.
The output format of reasoning process and final answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., "<think> reasoning process here </think>

<answer> final answer here </answer>".
During the thinking process, **the Assistant can perform searching** for uncertain knowledge if necessary with the format of "<|begin_of_query|> search query (only list keywords, such as **"keyword_1 keyword_2 ..."**)<|end_of_query|>". **A query must involve only a single triple**.
Then, the search system will provide the Assistant with the retrieval information with the format of "<|begin_of_documents|> ...search results... <|end_of_documents|>".

User:{question}
Assistant: <think>"""

_R1_CHAT_SYSTEM = """\
You are a helpful assistant.
Given a question, you should answer it by first thinking about the reasoning process in the mind and then providing the final answer.
The output format of reasoning process and final answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., "<think> reasoning process here </think>

<answer> final answer here </answer>".
During the thinking process, **you can perform searching for uncertain knowledge** if necessary with the format of "<|begin_of_query|> search query (only list keywords, such as **"keyword_1 keyword_2 ..."**)<|end_of_query|>". **A query must involve only a single triple**.
Then, the search system will provide you with the retrieval information with the format of "<|begin_of_documents|> ...search results... <|end_of_documents|>"."""

_R1_SEARCHES_BASE = """\
During the thinking process, **the Assistant can perform searching** for uncertain knowledge if necessary with the format of "<|begin_of_query|> search query (only list keywords, such as **"keyword_1 keyword_2 ..."**)<|end_of_query|>". **A query must involve only a single triple**.
Then, the search system will provide the Assistant with the retrieval information with the format of "<|begin_of_documents|> ...search results... <|end_of_documents|>".
"""

_WAS_GIVEN_BASE = """\
At the beginning of the thinking process, the search system provides the Assistant with the retrieval information with the format of "<|begin_of_documents|> ...search results... <|end_of_documents|>".
"""

_R1_SEARCHES_CHAT = _R1_CHAT_SYSTEM[_R1_CHAT_SYSTEM.index("\nDuring the thinking process") :]

_WAS_GIVEN_CHAT = """
At the beginning of the thinking process, the search system provides you with the retrieval information with the format of "<|begin_of_documents|> ...search results... <|end_of_documents|>"."""

_ASKED = "In which country was the painter Edvard Munch born?"
_SEARCHED = "I need to find where Edvard Munch was born. <|begin_of_query|> Edvard Munch birthplace <|end_of_query|>"
_READ = (
    "\n\n<|begin_of_documents|>\n(1)Title: Edvard Munch. Edvard Munch was a painter, born in Ådalsbruk, Norway.\n"
    "<|end_of_documents|>\n\n"
)
_ANSWERED = "Ådalsbruk is in Norway. </think>\n\n<answer> Norway </answer>"
_EXAMPLE = (_ASKED, f"<think> {_SEARCHED}{_READ}{_ANSWERED}")
_EXAMPLE_ONCE = (_ASKED, f"<think>{_READ}{_ANSWERED}")
_EXAMPLE_NONE = (_ASKED, f"<think> Edvard Munch was born in Ådalsbruk. {_ANSWERED}")

_BARE = "User:{question}\nAssistant: <think>"

_NONE_BASE, _NONE_CHAT = _R1_BASE.replace(_R1_SEARCHES_BASE, ""), _R1_CHAT_SYSTEM.replace(_R1_SEARCHES_CHAT, "")
_ONCE_BASE = _R1_BASE.replace(_R1_SEARCHES_BASE, _WAS_GIVEN_BASE)
_ONCE_CHAT = _R1_CHAT_SYSTEM.replace(_R1_SEARCHES_CHAT, _WAS_GIVEN_CHAT)


def _by_name(*templates: Template) -> Mapping[str, Template]:
    return {template.name: template for template in templates}


TEMPLATES = _by_name(
    Template("r1-searcher-base", _R1_BASE),
    Template("r1-searcher-chat", _R1_CHAT_SYSTEM, chat=True),
    Template("r1-searcher-chat-one-shot", _R1_CHAT_SYSTEM, chat=True, example=_EXAMPLE),
    Template("bare", _BARE),
)

_COUNTERPARTS: Mapping[SearchMode, Mapping[str, Template]] = {
    SearchMode.MULTI_TURN: TEMPLATES,
    SearchMode.ONCE: _by_name(
        Template("r1-searcher-base", _ONCE_BASE),
        Template("r1-searcher-chat", _ONCE_CHAT, chat=True),
        Template("r1-searcher-chat-one-shot", _ONCE_CHAT, chat=True, example=_EXAMPLE_ONCE),
        Template("bare", _BARE),
    ),
    SearchMode.NONE: _by_name(
        Template("r1-searcher-base", _NONE_BASE),
        Template("r1-searcher-chat", _NONE_CHAT, chat=True),
        Template("r1-searcher-chat-one-shot", _NONE_CHAT, chat=True, example=_EXAMPLE_NONE),
        Template("bare", _BARE),
    ),
}


def template_named(name: str, search: SearchMode = SearchMode.MULTI_TURN) -> Template:
    """The template, or its counterpart for a baseline. Raises InvalidInput that lists the known names."""
    if name not in TEMPLATES:
        raise InvalidInput(f"rollout.template: {name!r} is not one of {', '.join(sorted(TEMPLATES))}")
    return _COUNTERPARTS[search][name]


def base_prompt(template: Template, question: str) -> str:
    assert not template.chat, template.name
    return template.text.replace("{question}", question)


def chat_messages(template: Template, question: str) -> list[dict[str, str]]:
    """System, perhaps an example, and user message; the caller renders them and appends `THINK_OPEN`."""
    assert template.chat, template.name
    example = zip(("user", "assistant"), template.example or (), strict=False)
    turns = [("system", template.text), *example, ("user", question)]
    return [{"role": role, "content": content} for role, content in turns]


assert all(text.endswith(THINK_OPEN) for text in (_R1_BASE, _NONE_BASE, _ONCE_BASE, _BARE))
assert all("query" not in text for text in (_NONE_BASE, _NONE_CHAT, _ONCE_BASE, _ONCE_CHAT))
