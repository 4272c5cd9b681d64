"""rollout -> trainer: all scored trajectories of one question, packed for a Redis stream.

An entry has two fields: `meta` (JSON: everything but the token arrays) and `tokens` (one binary blob: for each segment
int32 ids, float32 logprobs, int32 weight steps, little-endian, in the order of `meta`). Provenance is per segment, so
the policy mask needs no bytes of its own.
"""

import json
import sys
from array import array
from enum import StrEnum
from typing import Any

from searcher.contracts.base import Contract, Name
from searcher.contracts.trajectory import Segment, Trajectory

assert array("i").itemsize == 4 and array("f").itemsize == 4 and sys.byteorder == "little"


class DropReason(StrEnum):
    """Why a question gave no group. Outages are not here: they are waited out, and the question is asked again."""

    PROMPT_TOO_LONG = "prompt_too_long"
    REFUSED = "refused"
    """A service answered 4xx: the task itself is wrong, and asking again would not help."""


class ScoredGroup(Contract):
    """What one question yields: its scored trajectories, or the reason why there are none."""

    group_id: Name
    run_id: Name
    stage: Name
    trajectories: tuple[Trajectory, ...]
    dropped: DropReason | None = None
    detail: str = ""


def pack_group(group: ScoredGroup) -> dict[bytes, bytes]:
    """A group -> the fields of its stream entry."""
    blob = bytearray()
    meta = group.model_dump(mode="json", exclude={"trajectories": {"__all__": {"segments"}}})
    for trajectory, row in zip(group.trajectories, meta["trajectories"], strict=True):
        row["segments"] = [_pack_segment(segment, blob) for segment in trajectory.segments]
    return {b"meta": _json(meta), b"tokens": bytes(blob)}


def unpack_group(fields: dict[bytes, bytes]) -> ScoredGroup:
    """The inverse of `pack_group`. Raises ValueError on a truncated or malformed entry."""
    meta = json.loads(fields[b"meta"])
    blob, position = memoryview(fields[b"tokens"]), 0
    for row in meta["trajectories"]:
        segments = []
        for source, text, num_tokens in row["segments"]:
            ids, position = _take("i", blob, position, num_tokens)
            logprobs, position = _take("f", blob, position, num_tokens)
            steps, position = _take("i", blob, position, num_tokens)
            segments.append(Segment(source=source, text=text, token_ids=ids, logprobs=logprobs, weight_steps=steps))
        row["segments"] = segments
    if position != len(blob):
        raise ValueError(f"entry of group {meta.get('group_id')!r} holds {len(blob)} token bytes, expected {position}")
    return ScoredGroup.model_validate(meta)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _pack_segment(segment: Segment, blob: bytearray) -> list[Any]:
    blob += array("i", segment.token_ids).tobytes()
    blob += array("f", segment.logprobs).tobytes()
    blob += array("i", segment.weight_steps).tobytes()
    return [segment.source.value, segment.text, len(segment.token_ids)]


def _take(kind: str, blob: memoryview, position: int, count: int) -> tuple[tuple[Any, ...], int]:
    end = position + 4 * count
    if end > len(blob):
        raise ValueError(f"token bytes end at {len(blob)}, but {end} are announced")
    values = array(kind)
    values.frombytes(blob[position:end])
    return tuple(values), end
