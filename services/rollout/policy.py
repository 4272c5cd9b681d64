"""The policy as an episode sees it: ids in, a sampled turn out; and the translation between its ids and text.

Token ids are decided once. Text is decoded from them to be read, and is never encoded again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from searcher.clients.engine import Sampled, Sampling
from searcher.contracts.errors import InvalidInput
from searcher.contracts.question import SearchMode
from searcher.contracts.search import Passage
from searcher.qa.prompt import base_prompt, chat_messages, template_named
from searcher.qa.tags import DOCUMENTS_CLOSE, THINK_OPEN, document_block


class Policy(Protocol):
    async def sample(self, token_ids: list[int], sampling: Sampling) -> Sampled | None:
        """The next turn; None where the context has no room for one. Raises UpstreamUnavailable."""


@dataclass(frozen=True)
class Tokens:
    """Text that the system wrote, with its ids."""

    text: str
    ids: list[int]

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.text + other.text, self.ids + other.ids)


class Codec:
    """text <-> ids by the model's own tokenizer (a Hugging Face one, or a toy with the same three methods)."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @classmethod
    def open(cls, model_dir: Path) -> Self:
        """Raises InvalidInput if the directory holds no tokenizer."""
        from transformers import AutoTokenizer

        try:
            return cls(AutoTokenizer.from_pretrained(model_dir, local_files_only=True))
        except (OSError, ValueError) as error:
            raise InvalidInput(f"ROLLOUT_MODEL_DIR: {model_dir} holds no tokenizer: {error}") from error

    def prompt(self, template_name: str, question: str, *, search: SearchMode = SearchMode.MULTI_TURN) -> Tokens:
        """Everything up to and with the pre-filled `<think>`. Raises InvalidInput for a template that does not fit."""
        template = template_named(template_name, search)
        if not template.chat:
            text = base_prompt(template, question)
            return Tokens(text, self.tokenizer.encode(text, add_special_tokens=True))
        if not self.tokenizer.chat_template:
            raise InvalidInput(
                f"plan.template: {template_name!r} is a chat template, but the model's tokenizer has none; "
                "use a base template or an instruct model"
            )
        messages = chat_messages(template, question)
        rendered = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        text = rendered + THINK_OPEN
        # The chat template writes the special tokens itself.
        return Tokens(text, self.tokenizer.encode(text, add_special_tokens=False))

    def documents(self, passages: Sequence[Passage], *, max_tokens: int) -> Tokens:
        """The block inserted after a query, in at most `max_tokens`: the worst passages go first, then the text's end.

        The closing tag always stays, so the policy can tell where documents end.
        """
        block = self._inserted(document_block(passages))
        while len(block.ids) > max_tokens and len(passages) > 1:
            passages = passages[:-1]
            block = self._inserted(document_block(passages))
        if len(block.ids) <= max_tokens:
            return block
        closing = self._inserted(f"\n{DOCUMENTS_CLOSE}\n\n")
        ids = block.ids[: max(0, max_tokens - len(closing.ids))] + closing.ids
        return Tokens(self.tokenizer.decode(ids, skip_special_tokens=False), ids)

    def written(self, ids: Sequence[int]) -> str:
        """What the policy wrote, without the end-of-sequence token."""
        visible = ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids
        text: str = self.tokenizer.decode(list(visible), skip_special_tokens=False)
        return text

    def _inserted(self, text: str) -> Tokens:
        return Tokens(text, self.tokenizer.encode(text, add_special_tokens=False))
