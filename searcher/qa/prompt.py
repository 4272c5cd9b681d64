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

_BARE = "User:{question}\nAssistant: <think>"

TEMPLATES: Mapping[str, Template] = {
    template.name: template
    for template in (
        Template("r1-searcher-base", _R1_BASE),
        Template("r1-searcher-chat", _R1_CHAT_SYSTEM, chat=True),
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
    """System and user message; the caller renders them and appends `THINK_OPEN`."""
    assert template.chat, template.name
    return [{"role": "system", "content": template.text}, {"role": "user", "content": question}]


assert _R1_BASE.endswith(THINK_OPEN) and _BARE.endswith(THINK_OPEN)
