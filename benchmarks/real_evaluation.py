"""SmolLM2-135M on real questions over real passages: no search, one search, multi-turn; with intervals and evidence.

    make smollm2                                        the model, once
    python -m benchmarks.real_evaluation --data DIR     DIR: folder with multihop/ and wiki/

Starts all services, asks the same questions in the three ways in one evaluation, and leaves the report as JSON,
Markdown and HTML. The ratio says how well the model searches by itself: the share of gold passages that its own
searches found over the share that one search with the question finds.
"""

import argparse
import asyncio
import gzip
import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from searcher.cli.console import console
from searcher.cli.embedded.deployment import Deployment
from searcher.cli.progress import track_evaluation
from searcher.contracts.question import Question
from searcher.contracts.recipe import CorpusRecipe
from searcher.contracts.report import BASELINES, POLICY, EvaluationRequest, Report
from searcher.recipes import load_recipe

FIGURES = (
    "em",
    "cover_em",
    "f1",
    "answered_rate",
    "format_rate",
    "searches_mean",
    "evidence_recall",
    "evidence_rate",
    "supported_rate",
)


def write_corpus(data: Path, out: Path) -> int:
    """All passages of DIR as one JSONL; returns their number. A row keeps id, title and text only."""
    count = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    with partial.open("w") as file:
        for source in [data / "multihop" / "corpus.jsonl.gz", *sorted((data / "wiki").glob("*.jsonl.gz"))]:
            for row in _rows(source):
                passage = {"id": str(row["id"]), "title": row.get("title", ""), "text": row["text"]}
                file.write(json.dumps(passage, ensure_ascii=False) + "\n")
                count += 1
    partial.replace(out)
    return count


def sample_questions(data: Path, size: int, *, seed: int) -> list[Question]:
    rows = list(_rows(data / "multihop" / "hotpotqa_questions.jsonl.gz"))
    random.Random(seed).shuffle(rows)
    return [
        Question(
            id=row["id"],
            question=row["question"],
            answers=(row["answer"], *row["aliases"]),
            hops=row["hops"],
            gold_ids=tuple(row["gold_ids"]),
        )
        for row in rows[:size]
    ]


def deployment(corpus: Path, state_dir: Path, port_offset: int) -> Deployment:
    recipe = load_recipe(Path("recipes/smollm2-135m.toml"))
    recipe = recipe.model_copy(
        update={
            "name": "smollm2-135m-real",
            "corpora": {"default": CorpusRecipe(source=str(corpus.resolve()), kind="bm25")},
        }
    )
    return Deployment.for_recipe(recipe, state_dir, port_offset)


async def evaluate(services: Deployment, questions: list[Question], k: int) -> tuple[Report, dict[str, str]]:
    request = EvaluationRequest(
        id=f"real-{time.strftime('%Y%m%d-%H%M%S')}",
        title=f"SmolLM2-135M-Instruct, {len(questions)} HotpotQA questions, k={k}",
        questions=tuple(questions),
        systems=(POLICY, *BASELINES),
        plan=services.recipe.evaluation_plan.model_copy(update={"documents_per_search": k}),
    )
    async with services.evaluator() as evaluator:
        report = await track_evaluation(console, evaluator, request)
        return report, {
            "html": await evaluator.report_html(request.id),
            "md": await evaluator.report_markdown(request.id),
        }


def table(report: Report) -> str:
    rows = [["", *(system.system.name for system in report.systems)]]
    for name in FIGURES:
        rows.append([name, *(_cell(system.overall, name) for system in report.systems)])
    width = max(len(cell) for row in rows for cell in row)
    return "\n".join("  ".join(cell.ljust(width) for cell in row) for row in rows)


def _cell(metrics: Any, name: str) -> str:
    value, interval = getattr(metrics, name), metrics.intervals.get(name)
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" [{interval.low:.3f}, {interval.high:.3f}]" if interval else "")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/real-evaluation"))
    parser.add_argument("--port-offset", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="eight questions")
    arguments = parser.parse_args()

    corpus = arguments.out / "corpus.jsonl"
    num_passages = sum(1 for _ in corpus.open("rb")) if corpus.exists() else write_corpus(arguments.data, corpus)
    questions = sample_questions(arguments.data, 8 if arguments.quick else arguments.questions, seed=arguments.seed)
    services = deployment(corpus, arguments.out / "state", arguments.port_offset)
    print(f"starting all services over {num_passages:,} passages")
    with services.running():
        report, pages = asyncio.run(evaluate(services, questions, arguments.k))
    (arguments.out / "report.json").write_text(report.model_dump_json(indent=1))
    for form, text in pages.items():
        (arguments.out / f"report.{form}").write_text(text)
    shutil.rmtree(arguments.out / "state" / "redis", ignore_errors=True)

    print(table(report))
    by_name = {system.system.name: system.overall for system in report.systems}
    found, findable = by_name["policy"].evidence_recall or 0.0, by_name["one search"].evidence_recall
    print(
        json.dumps(
            {
                "name": "real_evaluation",
                "ratio": round(found / findable, 3) if findable else None,
                "goal": None,
                "questions": len(questions),
                "passages": num_passages,
                "k": arguments.k,
                "seconds": round(report.seconds, 1),
                **{
                    f"{name}/{figure}": getattr(overall, figure)
                    for name, overall in by_name.items()
                    for figure in FIGURES
                },
            }
        )
    )


if __name__ == "__main__":
    main()
