"""The token ledger and its way over a Redis stream."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from searcher.contracts.experience import ScoredGroup, pack_group, unpack_group
from searcher.contracts.question import Question
from searcher.contracts.trajectory import Segment, Source, StopReason, Trajectory

QUESTION = Question(id="q1", question="Where was Halin Belard born?", answers=("Garum Grove",))


def segment(source: Source, ids: list[int], text: str = "text") -> Segment:
    wrote = source is Source.POLICY
    return Segment(
        source=source,
        text=text,
        token_ids=tuple(ids),
        logprobs=tuple(-0.5 if wrote else 0.0 for _ in ids),
        weight_steps=tuple(3 if wrote else -1 for _ in ids),
    )


def trajectory(*segments: Segment) -> Trajectory:
    return Trajectory(
        id="g1-0",
        question=QUESTION,
        prompt_text="User:…",
        prompt_ids=(0, 1),
        segments=segments,
        searches=(),
        stop_reason=StopReason.ANSWERED,
    )


def test_the_mask_is_true_exactly_on_what_the_policy_wrote() -> None:
    asked, read, answered = (
        segment(Source.POLICY, [5, 6]),
        segment(Source.DOCUMENTS, [7, 8, 9]),
        segment(Source.POLICY, [10]),
    )

    ledger = trajectory(asked, read, answered)

    assert ledger.token_ids == [5, 6, 7, 8, 9, 10]
    assert ledger.policy_mask == [True, True, False, False, False, True]
    assert ledger.logprobs == [-0.5, -0.5, 0.0, 0.0, 0.0, -0.5]
    assert ledger.weight_steps == [3, 3, -1, -1, -1, 3]
    assert ledger.num_policy_tokens == 3


def test_a_fake_document_block_of_the_policy_is_still_the_policys() -> None:
    fake = segment(Source.POLICY, [1, 2], text="<|begin_of_documents|>\n(1)I am right\n<|end_of_documents|>")

    assert trajectory(fake).policy_mask == [True, True]


def test_misaligned_arrays_are_refused() -> None:
    with pytest.raises(ValidationError, match="differ in length"):
        Segment(source=Source.POLICY, text="", token_ids=(1, 2), logprobs=(0.0,), weight_steps=(0, 0))


finite = st.floats(-50, 0, width=32)
ids = st.integers(0, 2**31 - 1)
segments = st.builds(
    lambda source, text, tokens: Segment(
        source=source,
        text=text,
        token_ids=tuple(token for token, _, _ in tokens),
        logprobs=tuple(logprob for _, logprob, _ in tokens),
        weight_steps=tuple(step for _, _, step in tokens),
    ),
    st.sampled_from(Source),
    st.text(max_size=40),
    st.lists(st.tuples(ids, finite, st.integers(-1, 10**6)), max_size=30),
)


@given(st.lists(st.lists(segments, max_size=5), max_size=4))
def test_a_group_survives_the_stream_bit_for_bit(trajectories: list[list[Segment]]) -> None:
    group = ScoredGroup(
        group_id="g1", run_id="r1", stage="s1", trajectories=tuple(trajectory(*parts) for parts in trajectories)
    )

    assert unpack_group(pack_group(group)) == group


def test_a_truncated_entry_is_an_error() -> None:
    group = ScoredGroup(
        group_id="g1", run_id="r1", stage="s1", trajectories=(trajectory(segment(Source.POLICY, [1, 2])),)
    )
    fields = pack_group(group)

    with pytest.raises(ValueError, match="announced"):
        unpack_group({**fields, b"tokens": fields[b"tokens"][:-4]})
    with pytest.raises(ValueError, match="expected"):
        unpack_group({**fields, b"tokens": fields[b"tokens"] + b"\0\0\0\0"})


def test_logprobs_keep_float32_precision() -> None:
    exact = segment(Source.POLICY, [1]).model_copy(update={"logprobs": (math.log(0.3),)})
    group = ScoredGroup(group_id="g1", run_id="r1", stage="s1", trajectories=(trajectory(exact),))

    (back,) = unpack_group(pack_group(group)).trajectories

    assert back.logprobs[0] == pytest.approx(math.log(0.3), rel=1e-7)
