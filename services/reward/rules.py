"""The rule sets: what a response is checked for, and which named parts its reward is the sum of."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from searcher.contracts.errors import InvalidInput
from searcher.contracts.score import RuleSet
from services.reward.answer_reward import (
    f1_if_format_right,
    f1_if_not_judged,
    judged_right,
    published_cover_em,
    published_f1,
    search_r1_em,
)
from services.reward.format_reward import (
    LLAMA_STAGE2_CHECKS,
    OWN_TEXT_CHECKS,
    QWEN_CHECKS,
    SEARCH_R1_CHECKS,
    STAGE1_CHECKS,
    bonus,
    penalty,
)
from services.reward.response import Check, Points, each
from services.reward.retrieval_reward import (
    fewest_searches,
    published_searched,
    really_searched_in_step,
    search_price,
    searched,
)


@dataclass(frozen=True)
class Rules:
    name: str
    description: str
    checks: tuple[Check, ...]
    """The format is right if all of them pass."""
    parts: Mapping[str, Points]
    aliases: tuple[str, ...] = ()
    reads_documents: bool = True
    """False: retrieved text changes no score, so nobody needs to send it."""
    compares: bool = False
    """Whether a part compares the responses of a group, which must be all of one question then."""
    asks: Literal["judge", "remote"] | None = None
    """Whose opinion its parts need."""

    def as_contract(self) -> RuleSet:
        return RuleSet(
            name=self.name,
            description=self.description,
            parts=tuple(self.parts),
            aliases=self.aliases,
            reads_documents=self.reads_documents,
            compares=self.compares,
        )


_THINK_AND_ANSWER = frozenset({"think_tags", "answer_tags"})

_ALWAYS = (
    Rules(
        "searcher",
        "F1 of the answer if the format is right, else -1. Only the policy's own text is judged; no answer is a "
        "format error.",
        OWN_TEXT_CHECKS,
        {"answer_f1": each(f1_if_format_right), "format": penalty(-1.0)},
        reads_documents=False,
    ),
    Rules(
        "searcher-stage1",
        "0.5 for a search that was really made, 0.5 for the right format; a right answer earns nothing.",
        OWN_TEXT_CHECKS,
        {"search": searched(0.5), "format": bonus(0.5)},
        reads_documents=False,
    ),
    Rules(
        "searcher-budget",
        "As `searcher`; and of the group's right answers (cover-EM), those with the fewest searches earn 0.25 per "
        "standard deviation of the right ones' searches, at most 0.5.",
        OWN_TEXT_CHECKS,
        {"answer_f1": each(f1_if_format_right), "format": penalty(-1.0), "fewest_searches": fewest_searches(0.25)},
        compares=True,
        reads_documents=False,
    ),
    Rules(
        "searcher-price",
        "As `searcher`; and each search costs 0.05, all of them at most half of the F1.",
        OWN_TEXT_CHECKS,
        {"answer_f1": each(f1_if_format_right), "format": penalty(-1.0), "search_price": search_price(0.05)},
        reads_documents=False,
    ),
    Rules(
        "r1-searcher-qwen",
        "Published (reward_server_qwen_zero): F1, and once -2 for any format error; retrieved text is judged too.",
        QWEN_CHECKS,
        {"answer_f1": each(published_f1), "format": penalty(-2.0)},
    ),
    Rules(
        "r1-searcher-llama-stage2",
        "Published (reward_server_llama_stage2): F1, and once -1 for any format error.",
        LLAMA_STAGE2_CHECKS,
        {"answer_f1": each(published_f1), "format": penalty(-1.0)},
    ),
    Rules(
        "r1-searcher-stage1-code",
        "Published (reward_server_llama_stage1): cover-EM as +1 or -1, 0.5 for searching, 0.5 for think and answer "
        "tags.",
        STAGE1_CHECKS,
        {
            "answer_cover_em": each(published_cover_em),
            "search": published_searched(0.5),
            "format": bonus(0.5, unless=_THINK_AND_ANSWER),
        },
        aliases=("r1-searcher-llama-stage1",),
    ),
    Rules(
        "r1-searcher-stage1-paper",
        "The paper's stage 1: 0.5 for searching, 0.5 for think and answer tags, nothing for the answer.",
        STAGE1_CHECKS,
        {"search": really_searched_in_step(0.5), "format": bonus(0.5, unless=_THINK_AND_ANSWER)},
    ),
    Rules(
        "search-r1-em",
        "Published (Search-R1, qa_em): exact match of the last answer, by Search-R1's own normalisation; the format "
        "neither earns nor costs anything.",
        SEARCH_R1_CHECKS,
        {"answer_em": each(search_r1_em)},
    ),
)

RULES: Mapping[str, Rules] = {rules.name: rules for rules in _ALWAYS}
"""What every reward service knows, by name."""

JUDGED = Rules(
    "searcher-judge",
    "1 if a judge model takes the answer for right, -1 for a format error. If the judge leaves an answer of the group "
    "unjudged, the whole group earns its F1 instead.",
    OWN_TEXT_CHECKS,
    {"answer_judge": judged_right, "answer_f1": f1_if_not_judged, "format": penalty(-1.0)},
    asks="judge",
    reads_documents=False,
)
REMOTE = Rules(
    "remote",
    "What the service at REWARD_REMOTE_URL says; the format is reported, and neither earns nor costs anything.",
    OWN_TEXT_CHECKS,
    {"remote": lambda group: group.remote_points},
    asks="remote",
)

_NEEDED = {JUDGED.name: "REWARD_JUDGE_URL and REWARD_JUDGE_MODEL", REMOTE.name: "REWARD_REMOTE_URL"}


def by_name(rule_sets: Iterable[Rules]) -> dict[str, Rules]:
    """Under names and aliases. Raises InvalidInput for a name that is taken twice."""
    known: dict[str, Rules] = {}
    for rules in rule_sets:
        for name in (rules.name, *rules.aliases):
            if name in known:
                raise InvalidInput(f"the name {name!r} is taken by another rule set; choose another")
            known[name] = rules
    return known


_BUILT_IN = by_name(_ALWAYS)


def rules_named(name: str, known: Mapping[str, Rules] = _BUILT_IN) -> Rules:
    """Raises InvalidInput that lists the known names."""
    if name not in known:
        hint = f" (it needs {_NEEDED[name]} to be set)" if name in _NEEDED else ""
        raise InvalidInput(f"rules: {name!r} is not one of {', '.join(sorted(known))}{hint}")
    return known[name]
