"""The real client against the real app, in process."""

import asyncio
import gzip
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import fmean

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY
from starlette.types import Message, Receive, Scope, Send

import services.reward.app as reward_app
from searcher.clients.judge import JudgeClient
from searcher.clients.reward import RemoteRewardClient, RewardClient
from searcher.contracts.errors import InvalidInput, SearcherError, UpstreamUnavailable
from searcher.contracts.question import Question
from searcher.contracts.score import RuleSet, Score, ScoreRequest
from searcher.contracts.search import Passage
from searcher.contracts.trajectory import Search, Segment, Source, StopReason, Trajectory
from searcher.qa.tags import document_block
from services.reward.app import create_app
from services.reward.response import Group
from services.reward.rules import RULES, Rules
from services.reward.settings import RewardSettings

pytestmark = pytest.mark.anyio

PASSAGE = Passage(id="7", title="France", text="Paris is its capital.", score=1.0)
ASK = "Let me see. <|begin_of_query|> capital of France <|end_of_query|>"


def trajectory(answer: str, *, searched: bool = True) -> Trajectory:
    texts = [(Source.POLICY, ASK), (Source.DOCUMENTS, document_block([PASSAGE]))] if searched else []
    texts.append((Source.POLICY, f"I see. </think>\n\n<answer> {answer} </answer>"))
    return Trajectory(
        id=f"q-{answer}-{searched}",
        question=Question(id="q", question="What is the capital of France?", answers=("Paris",)),
        prompt_text="User:…",
        prompt_ids=(1,),
        segments=tuple(
            Segment(source=source, text=text, token_ids=(2,), logprobs=(0.0,), weight_steps=(0,))
            for source, text in texts
        ),
        searches=(Search(query="capital of France", passages=(PASSAGE,)),) if searched else (),
        stop_reason=StopReason.ANSWERED,
    )


@asynccontextmanager
async def running(app: FastAPI, *, attempts: int = 1) -> AsyncIterator[RewardClient]:
    async with (
        app.router.lifespan_context(app),
        RewardClient("http://reward", transport=httpx.ASGITransport(app), attempts=attempts) as client,
    ):
        yield client


async def test_a_group_is_scored_in_order() -> None:
    async with running(create_app(RewardSettings())) as client:
        group = [trajectory("Paris"), trajectory("Rome"), trajectory("Paris, France", searched=False)]

        scores = await client.score(group, rules="searcher")

    assert [(s.answer, round(s.total, 3), s.format_ok) for s in scores] == [
        ("Paris", 1.0, True),
        ("Rome", 0.0, True),
        ("Paris, France", 0.667, True),
    ]


async def test_searches_of_the_trajectory_are_what_stage_1_pays_for() -> None:
    async with running(create_app(RewardSettings())) as client:
        group = [trajectory("Rome"), trajectory("Rome", searched=False)]

        scores = await client.score(group, rules="searcher-stage1")

    assert [s.parts for s in scores] == [{"search": 0.5, "format": 0.5}, {"search": 0.0, "format": 0.5}]


@pytest.mark.parametrize("rules", RULES)
async def test_every_rule_set_is_served(rules: str) -> None:
    async with running(create_app(RewardSettings())) as client:
        (scored,) = await client.score([trajectory("Paris")], rules=rules)

    assert scored.em == scored.f1 == 1.0 and scored.format_ok


async def test_the_rule_sets_are_listed() -> None:
    async with running(create_app(RewardSettings())) as client:
        listed = [RuleSet.model_validate(row) for row in await client.get("/v1/rules")]

    assert {rules.name: rules.parts for rules in listed} == {name: tuple(rules.parts) for name, rules in RULES.items()}


@pytest.mark.parametrize(("rules", "is_sent"), [("searcher", False), ("r1-searcher-qwen", True)])
async def test_documents_are_sent_to_rules_that_read_them_only(rules: str, is_sent: bool) -> None:
    app, sent = create_app(RewardSettings()), list[bytes]()
    answer = app.direct["/v1/score"]

    async def overhear(scope: Scope, receive: Receive, send: Send) -> None:
        async def heard() -> Message:
            message = await receive()
            sent.append(message.get("body", b""))
            return message

        await answer(scope, heard, send)

    app.direct["/v1/score"] = overhear

    async with running(app) as client:
        (scored,) = await client.score([trajectory("Paris")], rules=rules)

    assert scored.total == 1.0
    assert (b"begin_of_documents" in b"".join(sent)) is is_sent


async def test_an_unknown_rule_set_is_the_callers_mistake() -> None:
    async with running(create_app(RewardSettings())) as client:
        with pytest.raises(InvalidInput, match=r"reward: rules: 'f2' is not one of .*searcher-stage1"):
            await client.score([trajectory("Paris")], rules="f2")


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"items": []}, "body.items"),
        ({"items": [{"id": "1", "question": "?", "answers": [], "segments": []}]}, "body.items.0.answers"),
        (
            {"items": [{"id": "1", "question": "?", "answers": ["a"], "segments": [{"source": "user", "text": ""}]}]},
            "source",
        ),
        (
            {"items": [{"id": "1", "question": "?", "answers": ["a"], "segments": [], "reward": 1}]},
            "body.items.0.reward",
        ),
    ],
)
async def test_a_malformed_request_is_refused_by_the_name_of_its_field(body: dict[str, object], complaint: str) -> None:
    async with running(create_app(RewardSettings())) as client:
        with pytest.raises(InvalidInput, match=complaint):
            await client.post("/v1/score", body)


async def test_a_group_over_the_limit_is_asked_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    started, may_finish = threading.Event(), threading.Event()

    score = reward_app.score

    def slow(group: Group, rules: Rules) -> tuple[Score, ...]:
        started.set()
        assert may_finish.wait(timeout=30)
        return score(group, rules)

    monkeypatch.setattr(reward_app, "score", slow)
    monkeypatch.setattr(reward_app, "QUICK_CHARACTERS", 0)
    async with running(create_app(RewardSettings(max_in_flight=1))) as client:
        first = asyncio.create_task(client.score([trajectory("Paris")], rules="searcher"))
        await asyncio.to_thread(started.wait, 30)

        with pytest.raises(UpstreamUnavailable, match="REWARD_MAX_IN_FLIGHT"):
            await client.score([trajectory("Paris")], rules="searcher")

        may_finish.set()
        assert [scored.total for scored in await first] == [1.0]
        assert [scored.total for scored in await client.score([trajectory("Paris")], rules="searcher")] == [1.0]


async def test_what_was_scored_is_counted() -> None:
    def counted(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(f"searcher_reward_{name}_total", {"rules": "searcher", **labels}) or 0.0

    names = {"scores": {}, "unanswered": {}, "format_errors": {"check": "no_answer"}}
    before = {name: counted(name, **labels) for name, labels in names.items()}
    async with running(create_app(RewardSettings())) as client:
        await client.score([trajectory("Paris"), trajectory(" ")], rules="searcher")

    assert {name: counted(name, **labels) - before[name] for name, labels in names.items()} == {
        "scores": 2,
        "unanswered": 1,
        "format_errors": 1,
    }


async def test_the_service_is_ready_at_once() -> None:
    async with running(create_app(RewardSettings())) as client:
        assert await client.is_ready()


# ---------------------------------------------------------------------------------------------------------------------
# Gold answers, ids, sizes


def good(id_: str = "1", **changes: object) -> dict[str, object]:
    segments = [{"source": "policy", "text": "</think><answer>yes</answer>"}]
    return {"id": id_, "question": "?", "answers": ["yes"], "segments": segments, **changes}


@pytest.mark.parametrize("answers", ["yes", True, [True], ["no way", "Yes."]])
async def test_gold_answers_are_one_or_several_texts_or_booleans(answers: object) -> None:
    async with running(create_app(RewardSettings())) as client:
        body = await client.post("/v1/score", {"items": [good(answers=answers)]})

    assert body["scores"][0]["total"] == 1.0


async def test_scores_come_back_under_the_ids_of_their_items() -> None:
    async with running(create_app(RewardSettings())) as client:
        body = await client.post("/v1/score", {"items": [good("b"), good("a")]})

    assert body["ids"] == ["b", "a"]


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"items": [good("1"), good("1")]}, r"items\.1\.id: '1' is the id of items\.0 already"),
        ({"items": [good("1"), good("2", answers=[])]}, r"body\.items\.1\.answers"),
        ({"items": [good(answers=[""])]}, r"body\.items\.0\.answers\.0"),
        ({"items": [good(answers=[{"text": "x"}])]}, r"body\.items\.0\.answers\.0: .*valid string"),
        ({"items": [good(answers=None)]}, r"body\.items\.0\.answers\.0: .*valid string"),
        ({"items": [good(answers=["x" * 8_193])]}, r"body\.items\.0\.answers\.0: .*at most 8192"),
        ({"items": [good(answers=["x"] * 257)]}, r"body\.items\.0\.answers: .*at most 256"),
        ({"items": [good(question="")]}, r"body\.items\.0\.question"),
        ({"items": [good(num_searches=-1)]}, r"body\.items\.0\.num_searches"),
        ({"items": [good(segments="</think>")]}, r"body\.items\.0\.segments"),
        (
            {"items": [good(segments=[{"source": "policy", "text": "x" * 1_048_577}])]},
            r"body\.items\.0\.segments\.0\.text: .*at most 1048576",
        ),
        ({"items": [good(str(at)) for at in range(1_025)]}, r"body\.items: .*at most 1024"),
        ({"items": {}}, r"body\.items"),
        ({"items": [good()], "rules": "../rules"}, r"body\.rules"),
        ({"items": [good()], "rules": 1}, r"body\.rules"),
        ({"items": [good()], "rule": "searcher"}, r"body\.rule"),
        (
            {"items": [good("1"), good("2", question="??")], "rules": "searcher-budget"},
            r"items\.1\.question: differs from items\.0\.question",
        ),
    ],
)
async def test_bad_input_is_refused_by_item_and_field(body: dict[str, object], complaint: str) -> None:
    async with running(create_app(RewardSettings())) as client:
        with pytest.raises(InvalidInput, match=complaint):
            await client.post("/v1/score", body)


def test_the_request_and_the_response_of_score_are_documented() -> None:
    documented = create_app(RewardSettings()).openapi()["paths"]["/v1/score"]["post"]

    (asked,) = documented["requestBody"]["content"].values()
    (answered,) = documented["responses"]["200"]["content"].values()
    assert (asked["schema"]["$ref"], answered["schema"]["$ref"]) == (
        "#/components/schemas/ScoreRequest",
        "#/components/schemas/ScoreResponse",
    )


async def test_what_is_no_json_is_refused() -> None:
    app = create_app(RewardSettings())
    async with running(app), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://reward") as http:
        broken = await http.post("/v1/score", content=b'{"items": [', headers={"Content-Type": "application/json"})

    assert broken.status_code == 422
    assert "JSON" in broken.json()["detail"]


# ---------------------------------------------------------------------------------------------------------------------
# Judge


def says(text: str) -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"message": {"role": "assistant", "content": text}}]})


def judged_by(monkeypatch: pytest.MonkeyPatch, reply: Callable[[str], Awaitable[httpx.Response]]) -> RewardSettings:
    """Settings of a service whose judge replies to a prompt as `reply` does."""

    async def handle(request: httpx.Request) -> httpx.Response:
        return await reply(json.loads(request.content)["messages"][0]["content"])

    judge = partial(JudgeClient, transport=httpx.MockTransport(handle))
    monkeypatch.setattr(reward_app, "JudgeClient", judge)
    return RewardSettings(judge_url="http://judge/v1", judge_model="tiny", judge_attempts=1, judge_timeout_seconds=0.5)


async def test_a_judge_decides_what_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    async def reply(prompt: str) -> httpx.Response:
        return says("True" if "Predicted Answer: The French capital\n" in prompt else "False")

    async with running(create_app(judged_by(monkeypatch, reply))) as client:
        group = [trajectory("The French capital"), trajectory("Rome"), trajectory(" ")]
        scores = await client.score(group, rules="searcher-judge")

    assert [(s.judge, s.total, s.parts) for s in scores] == [
        ("right", 1.0, {"answer_judge": 1.0, "answer_f1": 0.0, "format": 0.0}),
        ("wrong", 0.0, {"answer_judge": 0.0, "answer_f1": 0.0, "format": 0.0}),
        ("not_asked", -1.0, {"answer_judge": 0.0, "answer_f1": 0.0, "format": -1.0}),
    ]


async def test_one_answer_that_is_not_judged_puts_its_whole_group_on_f1(monkeypatch: pytest.MonkeyPatch) -> None:
    async def reply(prompt: str) -> httpx.Response:
        return httpx.Response(500) if "Predicted Answer: Paris, France\n" in prompt else says("True")

    def not_judged() -> float:
        return REGISTRY.get_sample_value("searcher_reward_verdicts_total", {"verdict": "not_judged"}) or 0.0

    before = not_judged()
    async with running(create_app(judged_by(monkeypatch, reply))) as client:
        group = [trajectory("Paris, France"), trajectory("Rome"), trajectory("Paris"), trajectory(" ")]
        scores = await client.score(group, rules="searcher-judge")

    assert [s.judge for s in scores] == ["not_judged", "right", "right", "not_asked"]
    assert [round(s.total, 3) for s in scores] == [0.667, 0.0, 1.0, -1.0]
    assert [s.parts["answer_judge"] for s in scores] == [0.0] * 4
    assert not_judged() - before == 1


async def test_a_judge_that_hangs_costs_a_group_its_deadline_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def reply(prompt: str) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    settings = judged_by(monkeypatch, reply).model_copy(update={"judge_timeout_seconds": 0.05})
    async with running(create_app(settings)) as client:
        scores = await client.score([trajectory("Paris"), trajectory("Rome")], rules="searcher-judge")

    assert [(s.judge, s.total) for s in scores] == [("not_judged", 1.0), ("not_judged", 0.0)]


async def test_without_a_judge_its_rules_say_what_they_need() -> None:
    async with running(create_app(RewardSettings())) as client:
        with pytest.raises(InvalidInput, match=r"'searcher-judge' is not one of .* \(it needs REWARD_JUDGE_URL"):
            await client.score([trajectory("Paris")], rules="searcher-judge")


async def test_the_other_rule_sets_ask_no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    async def reply(prompt: str) -> httpx.Response:
        raise AssertionError

    async with running(create_app(judged_by(monkeypatch, reply))) as client:
        (scored,) = await client.score([trajectory("Paris")], rules="searcher")

    assert (scored.judge, scored.total) == (None, 1.0)


# ---------------------------------------------------------------------------------------------------------------------
# A reward of one's own


async def test_a_remote_reward_is_given_the_group_and_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def reply(request: httpx.Request) -> httpx.Response:
        asked.append((str(request.url), request.headers["Authorization"], request.content))
        return httpx.Response(200, json={"scores": [0.5, -3]})

    group = [trajectory("Paris"), trajectory("Rome")]
    async with running(create_app(remote(monkeypatch, reply))) as client:
        scores = await client.score(group, rules="remote")

    ((url, key, body),) = asked
    request = ScoreRequest.model_validate_json(body)
    assert (url, key, request.rules) == ("http://mine/score", "Bearer k", "remote")
    assert [(item.id, item.answers, item.num_searches) for item in request.items] == [
        (each.id, ("Paris",), 1) for each in group
    ]
    assert [(s.total, s.parts) for s in scores] == [(0.5, {"remote": 0.5}), (-3.0, {"remote": -3.0})]


def remote(monkeypatch: pytest.MonkeyPatch, reply: Callable[[httpx.Request], httpx.Response]) -> RewardSettings:
    client = partial(RemoteRewardClient, transport=httpx.MockTransport(reply), attempts=1)
    monkeypatch.setattr(reward_app, "RemoteRewardClient", client)
    monkeypatch.setattr(RewardSettings, "remote_key", "k")
    return RewardSettings(remote_url="http://mine/score")


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        ({"scores": [1.0]}, "1 scores for 2 items"),
        ({"scores": [1.0, None]}, r"scores\.1 is None, no finite number"),
        ({"scores": [True, 1.0]}, r"scores\.0 is True, no finite number"),
        ({"rewards": [1.0, 1.0]}, r"wanted \{\"scores\": \[number, …\]\}, got \{'rewards'"),
        ([1.0, 1.0], r"wanted \{\"scores\""),
    ],
)
async def test_nonsense_of_a_remote_reward_is_named(
    monkeypatch: pytest.MonkeyPatch, reply: object, complaint: str
) -> None:
    settings = remote(monkeypatch, lambda request: httpx.Response(200, json=reply))

    async with running(create_app(settings)) as client:
        with pytest.raises(SearcherError, match=complaint):
            await client.score([trajectory("Paris"), trajectory("Rome")], rules="remote")


async def test_a_remote_reward_that_is_down_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = remote(monkeypatch, lambda request: httpx.Response(503))

    async with running(create_app(settings)) as client:
        with pytest.raises(UpstreamUnavailable, match="remote reward"):
            await client.score([trajectory("Paris")], rules="remote")


# ---------------------------------------------------------------------------------------------------------------------
# /get_reward

QWEN = "The User asks a question, …\n\nUser:{question}\nAssistant: <think>"
LLAMA = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{question}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n<think>"
)
SEARCHED = ASK + document_block([PASSAGE]) + "I see. </think>\n\n<answer> Paris </answer>"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "questions.jsonl"
    rows = [
        {"idx": 1, "question": "What is the capital of France?", "answer": "Paris"},
        {"idx": 2, "question": 'Is "Emma" by Jane Austen?', "answer": "yes"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("prompt", [QWEN, LLAMA])
@pytest.mark.parametrize("rules", ["searcher", "r1-searcher-qwen", "r1-searcher-llama-stage2", "search-r1-em"])
async def test_full_texts_earn_what_their_trajectories_would(questions: Path, prompt: str, rules: str) -> None:
    settings = RewardSettings(dropin_questions=questions, dropin_rules=rules)
    texts = [
        prompt.format(question="What is the capital of France?") + SEARCHED + "<|endoftext|>",
        prompt.format(question="is emma by  Jane Austen") + "</think>\n\n<answer>no</answer>",
    ]

    async with running(create_app(settings)) as client:
        body = await client.post("/get_reward", {"query": texts})

    assert body == {"rewards": [1.0, 0.0]}
    assert all(type(reward) is float for reward in body["rewards"])


async def test_one_text_alone_is_a_list_of_one(questions: Path) -> None:
    async with running(create_app(RewardSettings(dropin_questions=questions))) as client:
        body = await client.post(
            "/get_reward", {"query": QWEN.format(question="What is the capital of France?") + SEARCHED}
        )

    assert body == {"rewards": [1.0]}


async def test_newer_clients_send_prompts_and_labels_and_need_no_questions() -> None:
    prompts = ["Q: capital of France? A:", "Q: …"]
    async with running(create_app(RewardSettings())) as client:
        body = await client.post(
            "/get_reward",
            {
                "query": [prompts[0] + SEARCHED, prompts[1] + "</think><answer>Rome</answer>"],
                "prompts": prompts,
                "labels": ["Paris", ["Oslo", "Rome, Italy"]],
            },
        )

    assert body["rewards"] == body["scores"] == [1.0, pytest.approx(2 / 3)]


async def test_a_policy_that_writes_the_prompt_again_is_judged_by_all_it_wrote(questions: Path) -> None:
    prompt = QWEN.format(question="What is the capital of France?")
    clean = "</think>\n\n<answer> Paris </answer>"
    text = prompt + "坏 <|begin_of_query|>\nAssistant: <think>" + clean  # the published server sees `clean` only

    async with running(
        create_app(RewardSettings(dropin_questions=questions, dropin_rules="r1-searcher-qwen"))
    ) as client:
        (fair,) = (await client.post("/get_reward", {"query": [prompt + clean]}))["rewards"]
        (faked,) = (await client.post("/get_reward", {"query": [text]}))["rewards"]

    assert (fair, faked) == (1.0, -1.0)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"query": ["x"]}, r"query\.0: holds no prompt of R1-Searcher"),
        (
            {"query": [QWEN.format(question="What is the capital of France?"), QWEN.format(question="Who?")]},
            r"query\.1: the question 'Who\?' is not among the 2 of .*questions\.jsonl \(REWARD_DROPIN_QUESTIONS\)",
        ),
        ({"query": []}, r"body\.query"),
        ({"query": [1]}, r"body\.query\.0"),
        ({}, r"body\.query"),
        ({"query": ["x"], "labels": ["a", "b"]}, "labels: 2 for 1 texts in query"),
        ({"query": ["x"], "prompts": ["x"], "labels": [[]]}, r"body\.labels\.0"),
    ],
)
async def test_what_get_reward_cannot_score_is_named(questions: Path, body: dict[str, object], complaint: str) -> None:
    async with running(create_app(RewardSettings(dropin_questions=questions))) as client:
        with pytest.raises(InvalidInput, match=complaint):
            await client.post("/get_reward", body)


async def test_get_reward_without_questions_says_what_to_set() -> None:
    async with running(create_app(RewardSettings())) as client:
        with pytest.raises(InvalidInput, match="set REWARD_DROPIN_QUESTIONS"):
            await client.post("/get_reward", {"query": [QWEN.format(question="?")]})


@pytest.mark.data
@pytest.mark.parametrize(("name", "prompt"), [("hotpotqa_qwen", QWEN), ("hotpotqa_llama", LLAMA)])
async def test_published_trajectories_earn_their_golden_means_as_full_texts(
    data_dir: Path, tmp_path: Path, name: str, prompt: str
) -> None:
    with gzip.open(data_dir / "r1_searcher" / "trajectories" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    file = data_dir / "r1_searcher" / "eval_set" / "hotpotqa_500.jsonl"
    texts = [prompt.format(question=row["question"]) + row["gen_text_store"] for row in rows]
    golden = {
        "hotpotqa_qwen": {"r1-searcher-qwen": (0.6407, 20), "r1-searcher-llama-stage2": (0.7187, 0)},
        "hotpotqa_llama": {"r1-searcher-qwen": (0.6339, 18), "r1-searcher-llama-stage2": (0.7059, 0)},
    }[name]

    found = {}
    for rules in golden:
        async with running(create_app(RewardSettings(dropin_questions=file, dropin_rules=rules))) as client:
            rewards = (await client.post("/get_reward", {"query": texts}))["rewards"]
        found[rules] = (round(fmean(rewards), 4), sum(reward < 0 for reward in rewards))

    assert found == golden
