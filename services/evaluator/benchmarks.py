"""The name of a benchmark and a folder -> its questions. What forms a file may have is the reader's business.

R1-Searcher evaluates on 500 questions each of HotpotQA, 2WikiMultiHopQA and MuSiQue and on all of Bamboogle; Search-R1
on these four data sets and NQ, TriviaQA and PopQA. Nothing is downloaded here: a missing file is an error that holds
the command which fetches it.
"""

import shlex
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from searcher.contracts.base import Contract
from searcher.contracts.errors import InvalidInput, NotFound
from searcher.contracts.question import Question
from searcher.files import file_sha256
from searcher.questions import load_questions

R1_SEARCHER = "https://raw.githubusercontent.com/RUCAIBox/R1-Searcher/main/data/eval_set"
FLASHRAG = "https://huggingface.co/datasets/RUC-NLPIR/FlashRAG_datasets/resolve/main"


@dataclass(frozen=True)
class Benchmark:
    name: str
    description: str
    files: tuple[str, ...]
    """Looked for in this order, each also with `.gz`; the first is the one that the published figures are about."""
    url: str
    """Of the first."""
    num_questions: int
    """Of the first."""
    sha256: str | None = None
    """Of the first as published, where it is known."""

    @property
    def searched_names(self) -> tuple[str, ...]:
        return tuple(name + suffix for name in self.files for suffix in ("", ".gz"))

    def find(self, folder: Path) -> Path | None:
        return next((path for name in self.searched_names if (path := folder / name).is_file()), None)

    def fetch_command(self, folder: Path) -> str:
        target = shlex.quote(str(folder / self.files[0]))
        return f"curl --fail --location --create-dirs --output {target} {self.url}"


class BenchmarkFacts(Contract):
    """One row of `GET /v1/benchmarks`."""

    name: str
    description: str
    file: str | None = None
    """None: not there; `fetch` gets it."""
    num_questions: int | None = None
    sha256: str | None = None
    as_published: bool | None = None
    """Whether the file is byte for byte the one behind the published figures; None where its hash is not known."""
    problem: str | None = None
    """Why the file that is there cannot be used."""
    fetch: str
    """The command that downloads the published file to where it is looked for."""


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "hotpotqa",
            "HotpotQA: R1-Searcher's 500 of the development set, or the development set",
            (
                "hotpotqa_500.jsonl",
                "hotpotqa.jsonl",
                "hotpot_dev_distractor_v1.json",
                "hotpot_dev_fullwiki_v1.json",
                "hotpotqa/dev.jsonl",
            ),
            f"{R1_SEARCHER}/hotpotqa_500.jsonl",
            500,
            "bf8a42f6e1abcaaaf050cf3c7ffa50231102dd1c021b77ab01eeac95fad04bea",
        ),
        Benchmark(
            "2wikimultihopqa",
            "2WikiMultiHopQA: R1-Searcher's 500 of the development set, or the development set",
            ("2wiki_500.jsonl", "2wikimultihopqa.jsonl", "2wikimultihopqa/dev.json", "2wikimultihopqa/dev.jsonl"),
            f"{R1_SEARCHER}/2wiki_500.jsonl",
            500,
            "0fb19dee8acbf146d60c699443b1164038727f9597f30f4894bab2da253b2f1a",
        ),
        Benchmark(
            "musique",
            "MuSiQue (answerable): R1-Searcher's 500 of the development set, or the development set",
            ("musique_500.jsonl", "musique.jsonl", "musique_ans_v1.0_dev.jsonl", "musique/dev.jsonl"),
            f"{R1_SEARCHER}/musique_500.jsonl",
            500,
            "d1342802b9b9850e44a946031de4557722427783c92421178d729dd6e113b50d",
        ),
        Benchmark(
            "bamboogle",
            "Bamboogle, all of it",
            ("bamboogle.jsonl", "Bamboogle Prerelease - Sheet1.csv", "bamboogle.csv", "bamboogle/test.jsonl"),
            f"{R1_SEARCHER}/bamboogle.jsonl",
            125,
            "1c551e2f4c3387fd97a1cf711737258df5ffd4ea86996f1b2ba63a861cb7af29",
        ),
        Benchmark(
            "nq",
            "Natural Questions, open: the 3,610 test questions",
            ("nq/test.jsonl", "nq.jsonl", "nq_test.jsonl", "NQ-open.dev.jsonl", "NQ-open.efficientqa.dev.1.1.jsonl"),
            f"{FLASHRAG}/nq/test.jsonl",
            3_610,
        ),
        Benchmark(
            "triviaqa",
            "TriviaQA, unfiltered: the 11,313 test questions, or the development set",
            (
                "triviaqa/test.jsonl",
                "triviaqa.jsonl",
                "triviaqa_test.jsonl",
                "unfiltered-web-dev.json",
                "triviaqa-unfiltered/unfiltered-web-dev.json",
            ),
            f"{FLASHRAG}/triviaqa/test.jsonl",
            11_313,
        ),
        Benchmark(
            "popqa",
            "PopQA: the 14,267 questions",
            ("popqa/test.jsonl", "popqa.jsonl", "popQA.tsv", "popqa.tsv"),
            f"{FLASHRAG}/popqa/test.jsonl",
            14_267,
        ),
    )
}
"""By name; together Search-R1's seven."""


def benchmark_named(name: str) -> Benchmark:
    """Raises InvalidInput that lists the known names."""
    if name not in BENCHMARKS:
        raise InvalidInput(f"benchmarks: {name!r} is not one of {', '.join(BENCHMARKS)}; or send `questions`")
    return BENCHMARKS[name]


def load_benchmark(name: str, folder: Path) -> tuple[Question, ...]:
    """In the file's order; ids are the file's and may occur in another benchmark too.

    Raises InvalidInput for a name that is not known and for a bad file, NotFound for a missing one.
    """
    return _read(find_benchmark(name, folder)).questions


def find_benchmark(name: str, folder: Path) -> Path:
    """Raises NotFound that says where was looked and how to get the file."""
    benchmark = benchmark_named(name)
    path = benchmark.find(folder)
    if path is None:
        raise NotFound(
            f"benchmarks: no file of {name!r} in {folder}; any of {', '.join(benchmark.files)} (or .gz) will do. "
            f"Fetch it: {benchmark.fetch_command(folder)}"
        )
    return path


def available(folder: Path) -> tuple[BenchmarkFacts, ...]:
    """Every benchmark, there or not. Reads files that have changed since they were last read."""
    return tuple(_facts(benchmark, folder) for benchmark in BENCHMARKS.values())


def _facts(benchmark: Benchmark, folder: Path) -> BenchmarkFacts:
    facts = BenchmarkFacts(
        name=benchmark.name, description=benchmark.description, fetch=benchmark.fetch_command(folder)
    )
    path = benchmark.find(folder)
    if path is None:
        return facts
    try:
        content = _read(path)
    except InvalidInput as error:
        return facts.model_copy(update={"file": str(path), "problem": str(error)})
    is_published = None if benchmark.sha256 is None else content.sha256 == benchmark.sha256
    return facts.model_copy(
        update={
            "file": str(path),
            "num_questions": len(content.questions),
            "sha256": content.sha256,
            "as_published": is_published,
        }
    )


@dataclass(frozen=True)
class _Content:
    questions: tuple[Question, ...]
    sha256: str


def _read(path: Path) -> _Content:
    facts = path.stat()
    return _read_once(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=len(BENCHMARKS))
def _read_once(path: Path, changed_ns: int, num_bytes: int) -> _Content:
    return _Content(tuple(load_questions(path)), file_sha256(path))
