"""Prompt templates by name: question -> the text (or chat messages) after which the policy starts to write.

Every template ends in a pre-filled `<think>`, so a response never contains one. The texts of the `r1-searcher-*`
templates are the published ones, character for character.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from searcher.contracts.errors import InvalidInput
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

_EXAMPLE = (
    "In which country was the painter Edvard Munch born?",
    "<think> I need to find where Edvard Munch was born. <|begin_of_query|> Edvard Munch birthplace <|end_of_query|>\n\n"
    "<|begin_of_documents|>\n(1)Title: Edvard Munch. Edvard Munch was a painter, born in Ådalsbruk, Norway.\n"
    "<|end_of_documents|>\n\n"
    "Ådalsbruk is in Norway. </think>\n\n<answer> Norway </answer>",
)

_BARE = "User:{question}\nAssistant: <think>"

TEMPLATES: Mapping[str, Template] = {
    template.name: template
    for template in (
        Template("r1-searcher-base", _R1_BASE),
        Template("r1-searcher-chat", _R1_CHAT_SYSTEM, chat=True),
        Template("r1-searcher-chat-one-shot", _R1_CHAT_SYSTEM, chat=True, example=_EXAMPLE),
        Template("bare", _BARE),
    )
}


def template_named(name: str) -> Template:
    """Raises InvalidInput that lists the known names."""
    if name not in TEMPLATES:
        raise InvalidInput(f"rollout.template: {name!r} is not one of {', '.join(sorted(TEMPLATES))}")
    return TEMPLATES[name]


def base_prompt(template: Template, question: str) -> str:
    assert not template.chat, template.name
    return template.text.replace("{question}", question)


def chat_messages(template: Template, question: str) -> list[dict[str, str]]:
    """System, perhaps an example, and user message; the caller renders them and appends `THINK_OPEN`."""
    assert template.chat, template.name
    example = zip(("user", "assistant"), template.example or (), strict=False)
    turns = [("system", template.text), *example, ("user", question)]
    return [{"role": role, "content": content} for role, content in turns]


assert _R1_BASE.endswith(THINK_OPEN) and _BARE.endswith(THINK_OPEN)
