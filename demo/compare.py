"""Several finished demos -> one picture of their curves, and a Markdown table of before and after.

python -m demo.compare runs/demo runs/demo-seed1 --labels "seed 0" "seed 1" --out docs/images/seeds.png
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo.report import Row, read_metrics

PANELS = {
    "held-out F1, 1 hop (greedy)": "eval/f1_1hop",
    "held-out F1, 2 hops (greedy)": "eval/f1_2hop",
    "search rate (sampled)": "search_rate",
    "searches per question (sampled)": "searches_per_question",
    "reward (sampled)": "reward",
    "gradient norm": "grad_norm",
}
TABLE = ("f1", "f1_1hop", "f1_2hop", "search_rate", "format_rate", "searches_per_2hop")


def draw(runs: dict[str, list[Row]], out: Path) -> None:
    """A panel per figure, a line per run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    for axes, (title, name) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
        for label, rows in runs.items():
            points = [(row["step"], row[name]) for row in rows if name in row]
            marker = "o" if name.startswith("eval/") else None
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1.4, marker=marker, markersize=3)
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=9)
    for axes in figure.axes[3:]:
        axes.set_xlabel("step")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def table(summaries: dict[str, dict[str, Any]]) -> str:
    """Greedy, with the sampled figure behind the slash."""
    lines = [f"| run | | {' | '.join(TABLE)} |", "|---" * (len(TABLE) + 2) + "|"]
    for label, summary in summaries.items():
        for when in ("before", "after"):
            cells = (f"{summary[when][name]:.2f} / {summary[f'{when}_sampled'][name]:.2f}" for name in TABLE)
            lines.append(f"| {label} | {when} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="directories of demos under runs/")
    parser.add_argument("--labels", nargs="+", help="one per run; the directories' names if not given")
    parser.add_argument("--out", type=Path, required=True, help="the picture, as PNG or SVG")
    given = parser.parse_args(arguments)
    labels = given.labels or [run.name for run in given.runs]
    if len(labels) != len(given.runs):
        parser.error(f"{len(labels)} labels for {len(given.runs)} runs")
    by_label = dict(zip(labels, given.runs, strict=True))
    draw({label: read_metrics(run / "training" / "metrics.jsonl") for label, run in by_label.items()}, given.out)
    print(table({label: json.loads((run / "summary.json").read_text()) for label, run in by_label.items()}))


if __name__ == "__main__":
    main()
