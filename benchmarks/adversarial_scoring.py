"""Scoring is linear in what a policy writes, whatever it writes: time at a size against time at half of it.

    python -m benchmarks.adversarial_scoring [--quick]

A response of one megabyte made of one adversarial piece is scored, and one of half of that, and so on; the drop-in
route's parser reads it as a full text. Linear work doubles with the size, quadratic work is four times as much. The
ratio reported is the worst of all, from half to the full size, over the fastest of alternating rounds: what disturbs a
round only adds to it.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

from benchmarks.measure import alternate, report, table
from searcher.contracts.score import ScoreItem, TextSegment
from searcher.qa.answer import cover_exact_match, cover_exact_match_strict, exact_match, f1
from searcher.qa.tags import TAGS
from services.reward.dropin import RewardRequest, items_of
from services.reward.engine import score_group
from services.reward.rules import RULES

MEGABYTE = 1_000_000
GOAL = 3.0
"""Between linear (2) and quadratic (4)."""
RULE_SETS = ("searcher-budget", "r1-searcher-qwen", "r1-searcher-stage1-code", "search-r1-em")
"""Between them they have every check and every part but the prices."""
CONCLUDE = "So it is Paris. </think>\n\n<answer> Paris </answer>"
PROMPT = "\n\nUser:What?\nAssistant: <think>"
PIECES = (
    *TAGS,
    "<answer>x</answer>",
    "<|begin_of_documents|>\n(1)",
    "<|end_of_query|>\n\n<|begin_of_documents|>\n",
    "<|begin_of_query|> x <|end_of_query|>",
    PROMPT,
    "<|start_header_id|>user<|end_header_id|>\n\n",
    "\nUser:",
    "  \t",
    "\n",
    "</s>",
    "<|endoftext|>",
    "<|",
    "the ",
    "x",
    "x ",
    "'",
    "é",
    "e\u0301",
    "\u4e00",
)


def response(piece: str, size: int) -> ScoreItem:
    """The piece before a good ending, and the piece again as a document and as the answer."""
    text = piece * (size // 3 // len(piece))
    segments = (
        TextSegment(source="policy", text=text + "<|end_of_query|>"),
        TextSegment(source="documents", text=text),
        TextSegment(source="policy", text=CONCLUDE + f"<answer>{text}</answer>"),
    )
    return ScoreItem(id="t", question="?", answers=("Paris", "x " * 1_000), segments=segments, num_searches=1)


def scoring(rules: str, piece: str, size: int) -> Callable[[], float]:
    item = response(piece, size)
    return lambda: seconds(lambda: score_group([item], RULES[rules]))


def splitting(piece: str, size: int) -> Callable[[], float]:
    request = RewardRequest(query=(PROMPT + piece * (size // len(piece)),), labels=(("x",),))
    return lambda: seconds(lambda: items_of(request, None))


def comparing(piece: str, size: int) -> Callable[[], float]:
    text, golds = piece * (size // len(piece)), ["x " * 2_000, piece * (4_000 // len(piece)) + "y"]
    metrics = (exact_match, cover_exact_match, cover_exact_match_strict, f1)
    return lambda: seconds(lambda: [metric(text, golds) for metric in metrics])


def seconds(work: Callable[[], object]) -> float:
    """Of this process's CPU, so that neighbours on the machine disturb less."""
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, two sizes")
    quick = parser.parse_args().quick
    rounds, sizes = (1, (MEGABYTE // 2, MEGABYTE)) if quick else (3, (MEGABYTE // 4, MEGABYTE // 2, MEGABYTE))
    ways: dict[str, Callable[[str, int], Callable[[], float]]] = {
        **{rules: partial(scoring, rules) for rules in RULE_SETS},
        "get_reward": splitting,
        "the four metrics": comparing,
    }
    rows: list[tuple[object, ...]] = [("scored by", "worst piece", *(f"ms at {size:,}" for size in sizes), "ratio")]
    worst = 0.0
    for name, way in ways.items():
        found = []
        for piece in PIECES:
            times = [min(each) for each in alternate(rounds, *(way(piece, size) for size in sizes))]
            found.append((times[-1] / times[-2], piece, times))
        ratio, piece, times = max(found)
        worst = max(worst, ratio)
        rows.append((name, repr(piece), *(f"{1000 * each:.1f}" for each in times), ratio))
    table(rows)
    report("adversarial_scoring", ratio=worst, goal=GOAL, pieces=len(PIECES), rounds=rounds)


if __name__ == "__main__":
    main()
