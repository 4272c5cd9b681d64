"""The processes of one training run: which one this is, and what they tell each other.

Only the first process talks to Redis and writes files; the others learn from it what to train on. What crosses is
bytes and tensors, never pickled objects.
"""

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from searcher.contracts.experience import ScoredGroup, pack_group, unpack_group

# Rollouts may take as long as they take; a dead process is noticed by its closed connection, not by this.
WAIT = timedelta(days=7)


@dataclass(frozen=True)
class Part:
    """Which share of the rows a process trains on: `index` of `count`."""

    index: int = 0
    count: int = 1


class Processes:
    """All processes of this run (torchrun's environment), or this one alone."""

    def __init__(self, *, device: str) -> None:
        self.part = Part(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = torch.device("cuda", local) if device == "cuda" else torch.device("cpu")
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        if device == "cuda":
            torch.cuda.set_device(self.device)
        if self.part.count > 1:
            dist.init_process_group(backend, timeout=WAIT)
        else:  # alone: no port, no name lookup
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=WAIT)

    @property
    def is_first(self) -> bool:
        return self.part.index == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.part.count > 1:
            dist.all_reduce(values)
        return values

    def largest(self, values: Tensor) -> Tensor:
        if self.part.count > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def wait_for_all(self) -> None:
        if self.part.count > 1:
            dist.barrier()

    def share(self, message: bytes | None) -> bytes | None:
        """What the first process says; the others' argument is ignored."""
        if self.part.count == 1:
            return message
        size = torch.tensor([-1 if message is None else len(message)])
        dist.broadcast(size, src=0)
        if size.item() < 0:
            return None
        buffer = torch.empty(int(size.item()), dtype=torch.uint8)
        if self.is_first and message:
            buffer.copy_(torch.frombuffer(bytearray(message), dtype=torch.uint8))
        dist.broadcast(buffer, src=0)
        return buffer.numpy().tobytes()

    def share_groups(self, groups: Sequence[ScoredGroup] | None) -> list[ScoredGroup] | None:
        """The first process's groups, or None, on every process."""
        if self.part.count == 1:
            return None if groups is None else list(groups)
        message = self.share(None if groups is None else join_groups(groups))
        return None if message is None else split_groups(message)

    def close(self) -> None:
        dist.destroy_process_group()


def join_groups(groups: Sequence[ScoredGroup]) -> bytes:
    """meta and tokens of each group, each with its length in front."""
    fields = [field for group in groups for field in pack_group(group).values()]
    return b"".join(struct.pack("<q", len(field)) + field for field in fields)


def split_groups(message: bytes) -> list[ScoredGroup]:
    fields, position = [], 0
    while position < len(message):
        (size,) = struct.unpack_from("<q", message, position)
        fields.append(message[position + 8 : position + 8 + size])
        position += 8 + size
    return [unpack_group({b"meta": m, b"tokens": t}) for m, t in zip(fields[::2], fields[1::2], strict=True)]
