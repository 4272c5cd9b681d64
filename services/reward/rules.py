"""The rule sets: what a response is checked for, and which named parts its reward is the sum of."""

from collections.abc import Mapping
from dataclasses import dataclass

from searcher.contracts.errors import InvalidInput
from searcher.contracts.score import RuleSet
from services.reward.answer_reward import f1_if_format_right, published_cover_em, published_f1
from services.reward.format_reward import (
    LLAMA_STAGE2_CHECKS,
    OWN_TEXT_CHECKS,
    QWEN_CHECKS,
    STAGE1_CHECKS,
    Check,
    bonus,
    penalty,
)
from services.reward.response import Points
from services.reward.retrieval_reward import published_searched, really_searched_in_step, searched


@dataclass(frozen=True)
class Rules:
    name: str
    description: str
    checks: tuple[Check, ...]
    """The format is right if all of them pass."""
    parts: Mapping[str, Points]

    def as_contract(self) -> RuleSet:
        return RuleSet(name=self.name, description=self.description, parts=tuple(self.parts))


_THINK_AND_ANSWER = frozenset({"think_tags", "answer_tags"})

RULES: Mapping[str, Rules] = {
    rules.name: rules
    for rules in (
        Rules(
            "searcher",
            "F1 of the answer if the format is right, else -1. Only the policy's own text is judged; no answer is a "
            "format error.",
            OWN_TEXT_CHECKS,
            {"answer_f1": f1_if_format_right, "format": penalty(-1.0)},
        ),
        Rules(
            "searcher-stage1",
            "0.5 for a search that was really made, 0.5 for the right format; a right answer earns nothing.",
            OWN_TEXT_CHECKS,
            {"search": searched(0.5), "format": bonus(0.5)},
        ),
        Rules(
            "r1-searcher-qwen",
            "Published (reward_server_qwen_zero): F1, and once -2 for any format error; retrieved text is judged too.",
            QWEN_CHECKS,
            {"answer_f1": published_f1, "format": penalty(-2.0)},
        ),
        Rules(
            "r1-searcher-llama-stage2",
            "Published (reward_server_llama_stage2): F1, and once -1 for any format error.",
            LLAMA_STAGE2_CHECKS,
            {"answer_f1": published_f1, "format": penalty(-1.0)},
        ),
        Rules(
            "r1-searcher-stage1-code",
            "Published (reward_server_llama_stage1): cover-EM as +1 or -1, 0.5 for searching, 0.5 for think and answer "
            "tags.",
            STAGE1_CHECKS,
            {
                "answer_cover_em": published_cover_em,
                "search": published_searched(0.5),
                "format": bonus(0.5, unless=_THINK_AND_ANSWER),
            },
        ),
        Rules(
            "r1-searcher-stage1-paper",
            "The paper's stage 1: 0.5 for searching, 0.5 for think and answer tags, nothing for the answer.",
            STAGE1_CHECKS,
            {"search": really_searched_in_step(0.5), "format": bonus(0.5, unless=_THINK_AND_ANSWER)},
        ),
    )
}


def rules_named(name: str) -> Rules:
    """Raises InvalidInput that lists the known names."""
    if name not in RULES:
        raise InvalidInput(f"rules: {name!r} is not one of {', '.join(sorted(RULES))}")
    return RULES[name]
