"""Our figures on R1-Searcher's published trajectories, beside those that its own code gives: equal to the last digit?

    python -m benchmarks.parity --data DIR              DIR: folder with r1_searcher/trajectories/

Rewards by three published rule sets, and EM, cover-EM, F1 and the judge's verdicts, of 500 HotpotQA trajectories of
each published model, through the code of `searcher eval score`. The ratio is the share of cells that equal the printed
digits; anything but 1 ends with exit code 1.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import report, table
from searcher.cli.score import Scored, mean, read, score

FILES = ("hotpotqa_qwen", "hotpotqa_llama")
RULES = ("r1-searcher-qwen", "r1-searcher-stage1-code", "r1-searcher-llama-stage2")
REWARDS = {
    ("hotpotqa_qwen", "r1-searcher-qwen"): ("0.6407", "20"),
    ("hotpotqa_qwen", "r1-searcher-stage1-code"): ("1.3010", "7"),
    ("hotpotqa_qwen", "r1-searcher-llama-stage2"): ("0.7187", "0"),
    ("hotpotqa_llama", "r1-searcher-qwen"): ("0.6339", "18"),
    ("hotpotqa_llama", "r1-searcher-stage1-code"): ("1.2960", "0"),
    ("hotpotqa_llama", "r1-searcher-llama-stage2"): ("0.7059", "0"),
}
"""Mean reward and negative rewards: the published reward servers' classes, run on the published trajectories."""
METRICS = {
    "hotpotqa_qwen": {"EM": "0.580", "cover-EM": "0.654", "F1": "0.719", "judged right": "375"},
    "hotpotqa_llama": {"EM": "0.584", "cover-EM": "0.648", "F1": "0.706", "judged right": "373"},
}
"""EM and F1: the paper's Table 4; cover-EM and the judge's .750 and .746 of 500: its Table 2."""


@dataclass(frozen=True)
class Cell:
    file: str
    what: str
    published: str
    ours: str

    @property
    def is_equal(self) -> bool:
        return self.published == self.ours


def metric_cells(file: str, scored: Scored) -> Iterator[Cell]:
    ours = {
        "EM": f"{mean(scored.em):.3f}",
        "cover-EM": f"{mean(scored.cover_em):.3f}",
        "F1": f"{mean(scored.f1):.3f}",
        "judged right": str(sum(scored.verdicts)),
    }
    for what, published in METRICS[file].items():
        yield Cell(file, what, published, ours[what])


def reward_cells(file: str, rules: str, scored: Scored) -> Iterator[Cell]:
    reward, negatives = REWARDS[file, rules]
    yield Cell(file, f"{rules}: mean reward", reward, f"{mean(scored.totals):.4f}")
    yield Cell(file, f"{rules}: negative", negatives, str(scored.negatives))


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("../shared/data"))
    options.add_argument("--quick", action="store_true", help="the same: it takes seconds anyway")
    folder = options.parse_args().data / "r1_searcher" / "trajectories"
    if not folder.is_dir():
        options.error(f"{folder} is not there; name its parent's parent with --data")
    started, cells = time.monotonic(), list[Cell]()
    for file in FILES:
        trajectories = read(folder / f"{file}.jsonl.gz")
        cells += metric_cells(file, score(trajectories, rules=None))
        for rules in RULES:
            cells += reward_cells(file, rules, score(trajectories, rules=rules))
    rows = [(cell.file, cell.what, cell.published, cell.ours, "=" if cell.is_equal else "DIFFERS") for cell in cells]
    table([("trajectories", "figure", "published", "ours", ""), *rows])
    equal = sum(cell.is_equal for cell in cells)
    report("parity", ratio=equal / len(cells), goal=1.0, cells=len(cells), equal=equal,
           seconds=round(time.monotonic() - started, 2))  # fmt: skip
    return 0 if equal == len(cells) else 1


if __name__ == "__main__":
    sys.exit(main())
