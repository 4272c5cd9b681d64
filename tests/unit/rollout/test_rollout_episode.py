"""One trajectory: think, search, read, answer; and its ledger, token by token."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_toys import ANSWERS, ASKS, BOS, EOS, PASSAGES, PLAN, QUESTION, ToyPolicy, ToyRetriever, ToyTokenizer

from searcher.contracts.errors import InvalidInput, UpstreamUnavailable
from searcher.contracts.question import RolloutPlan, SearchMode
from searcher.contracts.search import Passage
from searcher.contracts.trajectory import AskEvent, AskEventKind, Source, StopReason, Trajectory
from searcher.qa.tags import TAGS, document_block
from services.rollout.episode import episode
from services.rollout.policy import Codec

pytestmark = pytest.mark.anyio


async def events_of(
    policy: ToyPolicy, plan: RolloutPlan = PLAN, *, retriever: ToyRetriever | None = None, sample: int = 0
) -> list[AskEvent]:
    story = episode(
        QUESTION,
        plan,
        sample=sample,
        name="g.0",
        policy=policy,
        codec=Codec(ToyTokenizer()),
        retriever=retriever or ToyRetriever(),
    )
    return [event async for event in story]


async def play(
    texts: Sequence[str], plan: RolloutPlan = PLAN, *, retriever: ToyRetriever | None = None
) -> tuple[Trajectory, ToyPolicy]:
    policy = ToyPolicy(texts)
    trajectory = (await events_of(policy, plan, retriever=retriever))[-1].trajectory
    assert trajectory is not None
    return trajectory, policy


async def test_a_trajectory_is_think_search_read_answer() -> None:
    trajectory, _ = await play([ASKS, ANSWERS])

    assert [segment.text for segment in trajectory.segments] == [ASKS, document_block(PASSAGES), ANSWERS]
    assert [search.query for search in trajectory.searches] == ["Ada birthplace"]
    assert trajectory.stop_reason is StopReason.ANSWERED
    assert trajectory.prompt_text == "User:Where was Ada born?\nAssistant: <think>"
    assert trajectory.prompt_ids == (BOS, *map(ord, trajectory.prompt_text))


async def test_the_mask_is_true_on_sampled_tokens_and_false_on_documents() -> None:
    trajectory, _ = await play([ASKS, ANSWERS])

    block = len(document_block(PASSAGES))
    expected = [True] * len(ASKS) + [False] * block + [True] * (len(ANSWERS) + 1)  # and its end-of-sequence
    assert trajectory.policy_mask == expected
    assert [logprob == 0.0 for logprob in trajectory.logprobs] == [not sampled for sampled in expected]


async def test_the_policy_is_trained_on_its_end_of_sequence_which_is_no_text() -> None:
    trajectory, _ = await play([ANSWERS])

    assert trajectory.segments[-1].token_ids[-1] == EOS
    assert trajectory.text == ANSWERS


async def test_nothing_found_is_a_fact_that_the_policy_reads() -> None:
    trajectory, _ = await play([ASKS, ANSWERS], retriever=ToyRetriever(passages=()))

    assert trajectory.segments[1].text == "\n\n<|begin_of_documents|>\nNone<|end_of_documents|>\n\n"
    assert trajectory.stop_reason is StopReason.ANSWERED


async def test_an_outage_ends_the_episode_without_a_trajectory() -> None:
    retriever = ToyRetriever(failures=[UpstreamUnavailable("retriever did not answer")])

    with pytest.raises(UpstreamUnavailable):
        await play([ASKS], retriever=retriever)


@pytest.mark.parametrize(
    ("texts", "plan", "reason"),
    [
        ([ANSWERS], {}, StopReason.ANSWERED),
        (["It is <answer> London </answer> and more"], {"stop_at_answer": True}, StopReason.ANSWERED),
        (["no tag was opened<|end_of_query|>"], {}, StopReason.BAD_QUERY),
        (['<|begin_of_query|> "" <|end_of_query|>'], {}, StopReason.BAD_QUERY),
        ([ASKS], {"max_searches": 0}, StopReason.OUT_OF_SEARCHES),
        ([ASKS, ASKS, ASKS], {"max_searches": 2}, StopReason.OUT_OF_SEARCHES),
        (["a" * 50], {"max_tokens_per_turn": 20}, StopReason.OUT_OF_TOKENS),
        (["a" * 500], {"max_context_tokens": 100}, StopReason.OUT_OF_TOKENS),
    ],
)
async def test_every_ending_has_its_name(texts: list[str], plan: dict[str, int], reason: StopReason) -> None:
    trajectory, policy = await play(texts, PLAN.model_copy(update=plan))

    assert trajectory.stop_reason is reason
    assert len(policy.contexts) == len(texts)
    assert len(trajectory.searches) == len(texts) - 1


async def test_what_stops_at_the_answer_keeps_the_closing_tag() -> None:
    trajectory, _ = await play([ANSWERS + " and more"], PLAN.model_copy(update={"stop_at_answer": True}))

    assert trajectory.text == ANSWERS


async def test_prompt_and_response_never_exceed_the_context() -> None:
    trajectory, policy = await play([ASKS, "a" * 5_000], PLAN.model_copy(update={"max_context_tokens": 400}))

    assert len(trajectory.prompt_ids) + len(trajectory.token_ids) == 400
    assert policy.samplings[-1].max_tokens == 400 - len(policy.contexts[-1])


async def test_documents_that_do_not_fit_the_context_are_not_read() -> None:
    limit = len(QUESTION.question) + len(ASKS) + 80
    trajectory, _ = await play([ASKS, ANSWERS], PLAN.model_copy(update={"max_context_tokens": limit}))

    assert trajectory.stop_reason is StopReason.OUT_OF_TOKENS
    assert [segment.source for segment in trajectory.segments] == [Source.POLICY]


async def test_a_prompt_longer_than_the_context_gives_no_turn() -> None:
    trajectory, policy = await play([], PLAN.model_copy(update={"max_context_tokens": 32}))

    assert trajectory.stop_reason is StopReason.OUT_OF_TOKENS
    assert trajectory.segments == ()
    assert policy.contexts == []


async def test_an_engine_that_has_no_room_ends_the_trajectory() -> None:
    class Full(ToyPolicy):
        async def sample(self, token_ids: list[int], sampling: object) -> None:
            return None

    trajectory, _ = (await events_of(Full([])))[-1].trajectory, None

    assert trajectory is not None
    assert trajectory.stop_reason is StopReason.OUT_OF_TOKENS


async def test_events_tell_the_story_and_the_last_one_carries_the_trajectory() -> None:
    events = await events_of(ToyPolicy([ASKS, ANSWERS]))

    kinds = [event.kind for event in events]
    assert kinds == [AskEventKind.THINK, AskEventKind.SEARCH, AskEventKind.THINK, AskEventKind.DONE]
    assert [event.trajectory is not None for event in events] == [False, False, False, True]
    assert events[-1].answer == "London"


async def test_a_query_of_any_length_is_asked() -> None:
    retriever = ToyRetriever()
    await play(
        [f"<|begin_of_query|>{'x' * 9_000}<|end_of_query|>", ANSWERS],
        PLAN.model_copy(update={"max_context_tokens": 20_000, "max_tokens_per_turn": 10_000}),
        retriever=retriever,
    )

    assert retriever.queries == ["x" * 8_192]


async def test_seeds_repeat_and_differ_between_samples_and_turns() -> None:
    async def seeds(sample: int) -> list[int | None]:
        policy = ToyPolicy([ASKS, ANSWERS])
        await events_of(policy, PLAN.model_copy(update={"seed": 7}), sample=sample)
        return [sampling.seed for sampling in policy.samplings]

    assert await seeds(0) == await seeds(0)
    assert len({*await seeds(0), *await seeds(1)}) == 4


async def test_without_a_seed_sampling_is_free() -> None:
    _, policy = await play([ANSWERS])

    assert policy.samplings[0].seed is None


ONCE = PLAN.model_copy(update={"search": SearchMode.ONCE, "stop_at_answer": True})
NONE = PLAN.model_copy(update={"search": SearchMode.NONE, "stop_at_answer": True})


async def test_a_baseline_that_searches_once_reads_before_it_thinks() -> None:
    retriever = ToyRetriever()
    trajectory, policy = await play([ANSWERS], ONCE, retriever=retriever)

    assert retriever.queries == ["Where was Ada born?"]
    assert trajectory.prompt_text == "User:Where was Ada born?\nAssistant: <think>" + document_block(PASSAGES)
    assert policy.contexts == [[BOS, *map(ord, trajectory.prompt_text)]]
    assert [search.passages for search in trajectory.searches] == [PASSAGES]
    assert [segment.source for segment in trajectory.segments] == [Source.POLICY]


async def test_a_baseline_without_search_asks_nobody() -> None:
    retriever = ToyRetriever(failures=[AssertionError("was asked")])
    trajectory, policy = await play([ANSWERS], NONE, retriever=retriever)

    assert trajectory.prompt_text == "User:Where was Ada born?\nAssistant: <think>"
    assert trajectory.searches == ()
    assert policy.contexts == [list(trajectory.prompt_ids)]


@pytest.mark.parametrize("plan", [ONCE, NONE])
async def test_a_baselines_query_is_text_that_nobody_answers(plan: RolloutPlan) -> None:
    retriever = ToyRetriever()
    trajectory, policy = await play([f"{ASKS} Nothing comes. {ANSWERS} and more"], plan, retriever=retriever)

    assert len(policy.contexts) == 1
    assert len(retriever.queries) == len(trajectory.searches) == (plan is ONCE)
    assert trajectory.stop_reason is StopReason.ANSWERED
    assert trajectory.text == f"{ASKS} Nothing comes. {ANSWERS}"


async def test_an_outage_ends_a_baseline_without_a_trajectory() -> None:
    with pytest.raises(UpstreamUnavailable):
        await play([ANSWERS], ONCE, retriever=ToyRetriever(failures=[UpstreamUnavailable("retriever is away")]))


async def test_a_baseline_tells_what_it_read_first() -> None:
    events = await events_of(ToyPolicy([ANSWERS]), ONCE)

    assert [event.kind for event in events] == [AskEventKind.SEARCH, AskEventKind.THINK, AskEventKind.DONE]


words = st.lists(st.sampled_from([*TAGS, "a", " ", "\n", '"', "Ada"]), max_size=12).map("".join)


@given(st.lists(words, min_size=1, max_size=5), st.integers(60, 700), st.integers(8, 60))
def test_the_ledger_holds_exactly_what_the_engine_saw(texts: list[str], context: int, per_turn: int) -> None:
    """Whatever the policy writes, fake document tags included."""
    plan = PLAN.model_copy(update={"max_context_tokens": context, "max_tokens_per_turn": per_turn, "max_searches": 4})
    trajectory, policy = asyncio.run(play([*texts, ANSWERS, ANSWERS, ANSWERS, ANSWERS, ANSWERS], plan))

    so_far, seen = list(trajectory.prompt_ids), []
    for segment in trajectory.segments:
        if segment.source is Source.POLICY:
            seen.append(list(so_far))
        so_far += segment.token_ids
    assert policy.contexts == seen
    assert so_far == [*trajectory.prompt_ids, *trajectory.token_ids]
    assert trajectory.num_policy_tokens == sum(trajectory.policy_mask)
    sampled = [
        token for token, is_policy in zip(trajectory.token_ids, trajectory.policy_mask, strict=True) if is_policy
    ]
    assert sampled == [t for s in trajectory.segments if s.source is Source.POLICY for t in s.token_ids]
    assert len(so_far) <= max(context, len(trajectory.prompt_ids))
    assert len(trajectory.searches) == sum(s.source is Source.DOCUMENTS for s in trajectory.segments)


@given(st.lists(words, max_size=6), st.integers(64, 600))
def test_documents_are_cut_to_their_limit_and_stay_closed(texts: list[str], limit: int) -> None:
    passages = [Passage(id=str(i), title="T", text=text * 20, score=0.0) for i, text in enumerate(texts)]

    documents = Codec(ToyTokenizer()).documents(passages, max_tokens=limit)

    assert len(documents.ids) <= limit
    assert documents.text.startswith("\n\n<|begin_of_documents|>\n")
    assert documents.text.endswith("<|end_of_documents|>\n\n")
    assert documents.ids == [ord(letter) for letter in documents.text]


def test_the_worst_passages_are_cut_first() -> None:
    limit = len(document_block(PASSAGES)) - 1

    documents = Codec(ToyTokenizer()).documents(PASSAGES, max_tokens=limit)

    assert documents.text == document_block(PASSAGES[:1])


def test_a_chat_template_writes_its_own_special_tokens() -> None:
    prompt = Codec(ToyTokenizer("any")).prompt("r1-searcher-chat", "Who?")

    assert prompt.text.endswith("[user]Who?[assistant]<think>")
    assert BOS not in prompt.ids


def test_a_chat_template_needs_a_chat_model() -> None:
    with pytest.raises(InvalidInput, match=r"plan\.template"):
        Codec(ToyTokenizer()).prompt("r1-searcher-chat", "Who?")


def test_an_unknown_template_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="r1-searcher-base"):
        Codec(ToyTokenizer()).prompt("mine", "Who?")
