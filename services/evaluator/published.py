"""A benchmark and how it was asked -> the R1-Searcher paper's rows for it, if ours may stand beside them.

A figure depends on the corpus and on k as much as on the model: the same model loses 13 points of judged accuracy on
HotpotQA when it searches another Wikipedia. So rows come with figures only where questions, corpus, k and metric are
those of the paper, and else as one row without figures that says what differs.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from searcher.contracts.report import PublishedRow

PAPER = "R1-Searcher, arXiv 2503.05592v2"
JUDGE = "gpt-4o-mini"
K = 5


@dataclass(frozen=True)
class Setting:
    """How the paper asked a benchmark."""

    num_questions: int
    corpus: str
    """The name under which the retriever must serve it."""
    corpus_is: str


_KILT = ("kilt-2019-100w", "the KILT Wikipedia of 2019 in passages of 100 words")
SETTINGS: Mapping[str, Setting] = {
    "hotpotqa": Setting(500, "hotpotqa-2017-abstracts", "the Wikipedia abstracts of 2017 that HotpotQA comes with"),
    "2wikimultihopqa": Setting(500, *_KILT),
    "bamboogle": Setting(125, *_KILT),
    "musique": Setting(500, *_KILT),
}

# Cover-EM / judge. The paper calls them ACC_R and ACC_L.
_TABLE_2 = """
model              method             hotpotqa   2wikimultihopqa bamboogle musique
GPT-4o-mini        Naive              .324/.404  .348/.346       .240/.280 .134/.170
GPT-4o-mini        Standard RAG       .342/.450  .344/.292       .272/.328 .172/.188
GPT-4o-mini        SuRe               .270/.380  .244/.264       .168/.208 .128/.146
GPT-4o-mini        REPLUG             .350/.428  .296/.254       .224/.256 .132/.138
GPT-4o-mini        LongLLMLingua      .358/.450  .324/.316       .248/.288 .150/.172
GPT-4o-mini        RECOMP             .332/.398  .298/.306       .136/.176 .118/.134
GPT-4o-mini        Selective-Context  .366/.442  .350/.290       .240/.288 .152/.172
GPT-4o-mini        SKR                .360/.454  .364/.314       .248/.288 .162/.174
GPT-4o-mini        Self-Ask           .392/.462  .336/.478       .336/.416 .260/.270
GPT-4o-mini        Iter-RetGen        .374/.456  .326/.270       .232/.256 .178/.188
GPT-4o-mini        IRCoT              .434/.308  .492/.114       .272/.184 .192/.214
GPT-4o-mini        CR-Planner         .404/.416  .520/.478       .488/.524 .272/.262
GPT-4o-mini        ReARTeR            .468/.506  .554/.534       .496/.544 .296/.302
Llama-3.1-8B       Naive              .208/.268  .326/.254       .144/.168 .068/.096
Llama-3.1-8B       Standard RAG       .334/.398  .336/.212       .168/.216 .104/.098
Llama-3.1-8B       SuRe               .266/.346  .122/.262       .160/.192 .106/.144
Llama-3.1-8B       REPLUG             .290/.348  .334/.204       .168/.232 .078/.090
Llama-3.1-8B       LongLLMLingua      .314/.382  .304/.294       .168/.216 .088/.100
Llama-3.1-8B       RECOMP             .318/.380  .324/.322       .104/.160 .112/.126
Llama-3.1-8B       Selective-Context  .296/.358  .266/.204       .144/.200 .092/.104
Llama-3.1-8B       SKR                .300/.372  .336/.212       .176/.208 .100/.112
Llama-3.1-8B       Self-Ask           .316/.408  .306/.322       .360/.432 .222/.226
Llama-3.1-8B       Iter-RetGen        .302/.362  .310/.224       .144/.176 .084/.084
Llama-3.1-8B       IRCoT              .210/.146  .338/.312       .120/.104 .060/.042
Llama-3.1-8B       CR-Planner         .332/.350  .420/.350       .304/.336 .144/.098
Llama-3.1-8B       ReARTeR            .424/.434  .470/.364       .438/.484 .244/.252
Llama-3.1-8B       Marco-o1           .352/.348  .442/.184       .224/.200 .134/.104
Llama-3.1-8B       Skywork-o1         .306/.256  .344/.190       .176/.160 .092/.060
Llama-3.1-8B       R1-Searcher        .648/.746  .594/.628       .504/.544 .254/.282
Qwen-2.5-7B        R1-Searcher        .654/.750  .636/.650       .528/.544 .282/.314
"""

# EM / F1 of R1-Searcher (Tables 3 to 5), without Llama on 2WikiMultiHopQA: there the tables contradict each other.
_TABLE_4: Mapping[tuple[str, str], tuple[float, float]] = {
    ("Qwen-2.5-7B", "hotpotqa"): (0.580, 0.719),
    ("Qwen-2.5-7B", "2wikimultihopqa"): (0.554, 0.637),
    ("Qwen-2.5-7B", "bamboogle"): (0.456, 0.577),
    ("Llama-3.1-8B", "hotpotqa"): (0.584, 0.706),
    ("Llama-3.1-8B", "bamboogle"): (0.440, 0.571),
}


def published_rows(
    num_questions: Mapping[str, int], *, corpora: Mapping[str, Collection[str]], k: int, judge: str | None = None
) -> tuple[PublishedRow, ...]:
    """For each benchmark that the paper reports: all its rows, or one that says why there are none.

    `num_questions` and `corpora` (of the benchmark's questions) are by benchmark; `judge` is the model that judged.
    """
    rows: list[PublishedRow] = []
    for benchmark, count in num_questions.items():
        if benchmark in SETTINGS:
            differing = list(_differences(SETTINGS[benchmark], count, corpora.get(benchmark, ()), k))
            rows += [_refused(benchmark, differing)] if differing else _comparable(benchmark, judge)
    return tuple(rows)


def _differences(setting: Setting, num_questions: int, corpora: Collection[str], k: int) -> Iterator[str]:
    if num_questions != setting.num_questions:
        yield f"{num_questions} questions were asked, the paper's {setting.num_questions} were not"
    if set(corpora) != {setting.corpus}:
        names = ", ".join(sorted(corpora)) or "unknown"
        yield f"corpus {names} is not {setting.corpus} ({setting.corpus_is})"
    if k != K:
        yield f"k is {k}, published {K}"


def _refused(benchmark: str, differing: list[str]) -> PublishedRow:
    return PublishedRow(
        benchmark=benchmark, method="all methods", source=PAPER, figures={}, comparable=False,
        why_not="; ".join(differing),
    )  # fmt: skip


def _comparable(benchmark: str, judge: str | None) -> Iterator[PublishedRow]:
    same_judge = judge is not None and judge.startswith(JUDGE)
    why_not = f"judge: ours is {judge}, published {JUDGE}" if judge and not same_judge else ""
    for model, method, cover_em, judged in _table_2(benchmark):
        figures = {"cover_em": cover_em}
        if method == "R1-Searcher" and (model, benchmark) in _TABLE_4:
            em, f1 = _TABLE_4[model, benchmark]
            figures = {"em": em, "cover_em": cover_em, "f1": f1}
        if same_judge:
            figures["judge"] = judged
        source = f"{PAPER}, Table 2" + (" and 4" if "em" in figures else "")
        yield PublishedRow(
            benchmark=benchmark, method=f"{method}, {model}", source=source, figures=figures, comparable=True,
            why_not=why_not,
        )  # fmt: skip


def _table_2(benchmark: str) -> Iterator[tuple[str, str, float, float]]:
    """Model, method, cover-EM, judge."""
    lines = _TABLE_2.strip().splitlines()
    column = lines[0].split()[2:].index(benchmark)
    for line in lines[1:]:
        model, rest = line[:19].strip(), line[19:].split()
        cover_em, judged = rest[len(rest) - 4 + column].split("/")
        yield model, " ".join(rest[:-4]), float(cover_em), float(judged)
