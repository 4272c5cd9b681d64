"""Scored trajectories per second: `POST /v1/score`, many a call, against R1-Searcher's way, one HTTP call a sequence.

    python -m benchmarks.reward_throughput [--data DIR] [--quick]      DIR: folder with r1_searcher/

Rollout sends a group (16 trajectories) a call; who scores a step of a run at once sends 256. Both ways are one server
process and four callers, as the published launch has four ranks, and score the same published
trajectories by the same rule (reward_server_qwen_zero); their means must be the published ones. The baseline does what
the published server and client do: a new connection and one full text per call, blocking work in an `async def`, the
question looked up by its normalised text, the query printed, and a log file opened and appended to per call.
"""

import argparse
import asyncio
import gzip
import json
import os
import re
import string
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
import requests

from benchmarks.measure import alternate, chunks, free_port, median, report, table
from searcher.clients.reward import RewardClient
from searcher.contracts.score import ScoreItem
from services.reward.dropin import segments_of

CALLERS, GROUP, STEP, GOAL = 4, 16, 256, 20.0
RULES = "r1-searcher-qwen"
Way = tuple[int, str]
"""Trajectories a call, and the rules."""
PUBLISHED: Way = (1, "as published")
OUR_WAYS: tuple[Way, ...] = ((GROUP, RULES), (STEP, RULES), (GROUP, "searcher"), (STEP, "searcher"))
FILE = "hotpotqa_qwen"
PUBLISHED_MEAN = 0.6407
PROMPT = "The User asks a question, and the Assistant solves it.\n\nUser:{}\nAssistant: <think>"
END = "<|endoftext|>"

# ---------------------------------------------------------------------------------------------------------------------
# The published way, written anew


def published_server(port: int, questions: Path, log_file: Path) -> None:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse

    answers = {}
    for line in questions.read_text().splitlines():
        row = json.loads(line)
        answers[_look_up_key(row["question"])] = row["answer"]
    app = FastAPI()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {}

    @app.post("/get_reward")
    async def get_reward(request: Request) -> JSONResponse:
        data = await request.json()
        scores = []
        with log_file.open("a") as log:
            for query in data["query"]:
                score, row = _published_score(query, answers)
                scores.append(score)
                print(query)
                log.write(json.dumps(row, ensure_ascii=False) + "\n")
        return JSONResponse({"rewards": scores})

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="info")


def _published_score(query: str, answers: dict[str, str]) -> tuple[float, dict[str, object]]:
    marks = f"({re.escape(END)})+"
    query = re.sub(f"{marks}$", "", re.sub(f"^{marks}", "", query)) + END
    question = " ".join(query.split("\n\nUser:")[1:]).split("\nAssistant: <think>")[0].strip()
    solution = query.split("\nAssistant: <think>")[-1].strip()
    score, finished = 0.0, "<answer>" in solution and "</answer>" in solution
    answer = solution.split("<answer>")[-1].split("</answer>")[0].strip()
    if finished:
        score = _f1(answer, answers[_look_up_key(question)])
    spellings = (
        "<|begin_of_documents|>\n",
        "<|end_of_documents|>\n\n",
        "<|begin_of_query|>",
        "<|end_of_query|>",
        "<|begin_of_documents|>",
        "<|end_of_documents|>",
        "<|begin_of_documents|>\n(1)",
    )
    outside = re.sub(r"<\|begin_of_documents\|>.*?<\|end_of_documents\|>", "", solution, flags=re.DOTALL)
    right = (
        len({solution.count(text) for text in spellings}) == 1
        and "Assistant" not in solution
        and "assistant" not in solution
        and (solution.count("<think>"), solution.count("</think>")) == (0, 1)
        and solution.count("<answer>") == solution.count("</answer>") == 1
        and "begin_of_query" not in answer
        and "begin_of_documents" not in answer
        and len(answer.split()) <= 10
        and not re.search("[\u4e00-\u9fff]", outside)
    )
    score -= 0.0 if right else 2.0
    return score, {"question": question, "solution": solution, "score": score, "finished": str(int(finished))}


def _f1(prediction: str, gold: str) -> float:
    predicted, wanted = _normalized(prediction), _normalized(gold)
    closed = ("yes", "no", "noanswer")
    if predicted != wanted and (predicted in closed or wanted in closed):
        return 0.0
    words, gold_words = predicted.split(), wanted.split()
    same = sum((Counter(words) & Counter(gold_words)).values())
    return 2 * same / (len(words) + len(gold_words)) if same else 0.0


def _normalized(text: str) -> str:
    text = {"True": "yes", "False": "no"}.get(text, text).replace("_", " ").lower()
    exclude = set(string.punctuation + "‘’´`")
    text = "".join(" " if letter in exclude else letter for letter in text)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _look_up_key(text: str) -> str:
    text = re.sub(r"""[,.:"'\[\]\-=+|!@#$%^&*();<>?/！￥…（）—{}：”“《》？]""", " ", text.lower())
    return re.sub(r"\s+", " ", re.sub(r"import\s[a-zA-Z.]+(\sas\s[a-zA-Z.]+)\n", " ", text)).strip()


def published_calls(url: str, texts: Sequence[str]) -> list[float]:
    def call(text: str) -> float:
        headers = {"Content-Type": "application/json"}
        response = requests.post(url=f"{url}/get_reward", json={"query": [text]}, headers=headers, timeout=360)
        response.raise_for_status()
        (reward,) = response.json()["rewards"]
        return float(reward)

    with ThreadPoolExecutor(CALLERS) as callers:
        return list(callers.map(call, texts))


# ---------------------------------------------------------------------------------------------------------------------
# Ours


def asked_us(calls: Sequence[Sequence[ScoreItem]], rules: str, url: str) -> list[float]:
    return asyncio.run(our_calls(url, calls, rules))


async def our_calls(url: str, groups: Sequence[Sequence[ScoreItem]], rules: str) -> list[float]:
    waiting = list(enumerate(groups))[::-1]
    totals: dict[int, list[float]] = {}

    async def caller(client: RewardClient) -> None:
        while waiting:
            at, group = waiting.pop()
            totals[at] = [scored.total for scored in await client.score_items(group, rules=rules)]

    async with RewardClient(url) as client:
        await asyncio.gather(*(caller(client) for _ in range(CALLERS)))
    return [total for at in sorted(totals) for total in totals[at]]


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


@dataclass(frozen=True)
class Server:
    url: str
    process: psutil.Process

    def cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)


@dataclass(frozen=True)
class Round:
    per_second: float
    """Trajectories."""
    server_microseconds: float
    """Of CPU, per trajectory."""
    caller_microseconds: float
    mean_reward: float


@contextmanager
def serving(command: list[str], port: int, **environment: str) -> Iterator[Server]:
    url = f"http://127.0.0.1:{port}"
    with Path(os.devnull).open("wb") as nowhere:
        process = subprocess.Popen(command, stdout=nowhere, stderr=nowhere, env={**os.environ, **environment})
    try:
        while True:
            try:
                requests.get(f"{url}/healthz", timeout=1)
                break
            except requests.ConnectionError:
                if process.poll() is not None:
                    sys.exit(f"{' '.join(command)} ended with {process.returncode}")
                time.sleep(0.1)
        yield Server(url, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(timeout=30)


def measured(server: Server, work: Callable[[str], list[float]]) -> Round:
    started, server_started, caller_started = time.perf_counter(), server.cpu_seconds(), time.process_time()
    totals = work(server.url)
    seconds = time.perf_counter() - started
    return Round(
        per_second=len(totals) / seconds,
        server_microseconds=1e6 * (server.cpu_seconds() - server_started) / len(totals),
        caller_microseconds=1e6 * (time.process_time() - caller_started) / len(totals),
        mean_reward=fmean(totals),
    )


def item(row: dict[str, Any], at: int) -> ScoreItem:
    segments = segments_of(row["gen_text_store"])
    searches = sum(segment.source == "documents" for segment in segments)
    question = row["question"]
    return ScoreItem(id=str(at), question=question, answers=row["answer"], segments=segments, num_searches=searches)


def read_trajectories(data: Path) -> tuple[list[str], list[ScoreItem]]:
    """The published trajectories, as whole texts and as what we score."""
    with gzip.open(data / "r1_searcher" / "trajectories" / f"{FILE}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    texts = [PROMPT.format(row["question"]) + row["gen_text_store"] + END for row in rows]
    return texts, [item(row, at) for at, row in enumerate(rows)]


def measure(data: Path, *, rounds: int, repeats: int) -> dict[Way, list[Round]]:
    """Rounds by way: the published one, then ours."""
    questions = data / "r1_searcher" / "eval_set" / "hotpotqa_500.jsonl"
    texts, items = read_trajectories(data)
    calls = {size: list(chunks(items * repeats, size)) for size in (GROUP, STEP)}
    ours_port, theirs_port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as scratch:
        published = [sys.executable, "-m", "benchmarks.reward_throughput", "--serve-published", str(theirs_port)]
        with (
            serving([*published, str(questions), f"{scratch}/log.jsonl"], theirs_port) as theirs,
            serving([sys.executable, "-m", "services.reward"], ours_port, REWARD_PORT=str(ours_port)) as ours,
        ):
            found = alternate(
                rounds,
                lambda: measured(theirs, lambda url: published_calls(url, texts)),
                *(partial(measured, ours, partial(asked_us, calls[size], rules)) for size, rules in OUR_WAYS),
            )
    return dict(zip((PUBLISHED, *OUR_WAYS), found, strict=True))


def check_same_rewards(found: Mapping[Way, list[Round]]) -> None:
    same = [round(found[way][0].mean_reward, 4) for way in found if way == PUBLISHED or way[1] == RULES]
    if set(same) != {PUBLISHED_MEAN}:
        sys.exit(f"mean rewards are {same}, but {PUBLISHED_MEAN} is published: these are not the same rewards")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SEARCHER_DATA", "../shared/data")))
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--serve-published", nargs=3, metavar=("PORT", "QUESTIONS", "LOG"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_published:
        port, questions, log_file = arguments.serve_published
        published_server(int(port), Path(questions), Path(log_file))
        return

    rounds, repeats = (2, 4) if arguments.quick else (5, 20)
    found = measure(arguments.data, rounds=rounds, repeats=repeats)
    check_same_rewards(found)
    rates = {way: median(each.per_second for each in results) for way, results in found.items()}
    ratios = {way: rate / rates[PUBLISHED] for way, rate in rates.items()}
    rows: list[tuple[object, ...]] = [
        ("a call", "rules", "trajectories/s", "ratio", "server CPU us each", "caller CPU us each", "mean reward")
    ]
    for way, results in found.items():
        server = median(each.server_microseconds for each in results)
        caller = median(each.caller_microseconds for each in results)
        mean_reward = round(results[0].mean_reward, 4)
        rows.append((*way, round(rates[way]), ratios[way], round(server), round(caller), mean_reward))
    table(rows)
    report(
        "reward_throughput",
        ratio=ratios[STEP, "searcher"],
        goal=GOAL,
        published_per_second=round(rates[PUBLISHED]),
        ours_per_second=round(rates[STEP, "searcher"]),
        ratio_same_rules=round(ratios[STEP, RULES], 1),
        ratio_same_rules_by_group=round(ratios[GROUP, RULES], 1),
        ratio_by_group=round(ratios[GROUP, "searcher"], 1),
        rounds=rounds,
    )


if __name__ == "__main__":
    main()
