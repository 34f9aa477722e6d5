"""Several processes at work on one run: what is divided among them, and how their numbers become one again.

Every rank holds the same weights and the same batch and does its share of the forward and backward passes. What the
ranks found is added up in one order, the same everywhere, so all of them take the same decisions and the same optimiser
step. A process that is alone is a rank too: for it nothing here communicates.

Ranks speak by gloo on the CPU, whatever device they compute on: log-probs, sampled ids, decisions are small. Gradients
may be as large as the model, and GPUs add up theirs by NCCL. Tensors travel as safetensors: no pickle. Start them with
torchrun (docs/distributed.md).
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from plaudit.dist.config import Shard
from plaudit.dist.meeting import PATIENCE, Meeting, meet, met
from plaudit.errors import RankLost

T = TypeVar("T")
BUCKET = 2**25
"""Numbers that are added up at once, unless one parameter has more: what that takes beside the gradients is bounded."""


@dataclass(frozen=True)
class Ranks:
    """This process among `count` that work together; `local` of them share this machine, where it is `local_rank`."""

    rank: int = 0
    count: int = 1
    local: int = 1
    local_rank: int = 0
    shard: Shard = "none"
    """Which of them hold the frozen base together, each a part."""
    _patient: dist.ProcessGroup | None = field(default=None, compare=False)
    _meeting: Meeting | None = field(default=None, compare=False)

    @classmethod
    def join(cls) -> "Ranks":
        """The ranks that torchrun started, by the environment variables it sets; without those one alone."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        with _together():
            meeting = met() if dist.is_initialized() else meet()
            patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        rank, known = dist.get_rank(), os.environ
        local, local_rank = int(known.get("LOCAL_WORLD_SIZE", count)), int(known.get("LOCAL_RANK", rank))
        return cls(rank, count, local, local_rank, _patient=patient, _meeting=meeting)

    @property
    def came_back(self) -> bool:
        """Whether torchrun has started these ranks anew, after others of the same command had begun a stage."""
        return self._meeting is not None and self._meeting.begun

    def begin(self) -> None:
        """A stage has begun: ranks that torchrun starts after these go on with it."""
        if self._meeting is not None:
            self._meeting.begin()

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files, speaks to people, and does what is not divided."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Every count-th of `items`, from this rank's own number on; empty where there are fewer than ranks."""
        return items[self.rank :: self.count]

    def passes(self, items: Sequence[T]) -> list[tuple[T, float]]:
        """What this rank passes through a model, each with its weight: its share, 1. Where ranks hold a model together
        all pass equally often, so that one which has less takes the first item once more, with the weight 0."""
        mine = [(item, 1.0) for item in self.share(items)]
        turns = -(-len(items) // self.count) if self.shard != "none" else 0
        return mine + [(item, 0.0) for item in items[:1]] * (turns - len(mine))

    def parts(self, shard: Shard) -> int:
        """In how many parts ranks hold a model together."""
        return {"none": 1, "node": self.local, "all": self.count}[shard]

    def mesh(self, device: str) -> DeviceMesh | None:
        """The ranks that hold a model together with this one, on devices of this type; None where each holds it all."""
        if self.parts(self.shard) == 1:
            return None
        if self.shard == "all":
            return init_device_mesh(device, (self.count,))
        return init_device_mesh(device, (self.count // self.local, self.local), mesh_dim_names=("machines", "ranks"))[
            "ranks"
        ]

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """In this block a rank that holds a part asks others for theirs in every pass: RankLost where one has ended."""
        try:
            yield
        except RuntimeError as error:
            if self.shard == "none" or not ("gloo" in str(error) or isinstance(error, dist.DistError)):
                raise
            raise _lost(error) from error

    def rows(self, asked: int, count: int) -> int:
        """How many of `count` items go through at once, so that no rank is idle where there are enough: `asked`, or
        less."""
        return min(asked, max(1, -(-count // self.count)))

    def sums(self, *mine: float) -> list[float]:
        """The sum over the ranks of each number."""
        return self.total({"sums": torch.tensor(mine, dtype=torch.float64)})["sums"].tolist()

    def total(self, mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum over the ranks of each named tensor; a rank that lacks a name adds nothing.

        Equal to the last bit on every rank. Rows that one rank alone has filled, the others zero, stay what they are.
        """
        if self.count == 1:
            return dict(mine)
        totals: dict[str, Tensor] = {}
        for message in self._exchange(save({name: tensor.cpu().contiguous() for name, tensor in mine.items()})):
            for name, tensor in load(message).items():
                totals[name] = totals[name] + tensor if name in totals else tensor
        # In the order of this rank's own names, so that logs list them as one process does.
        order = [*mine, *sorted(totals.keys() - mine.keys())]
        return {name: totals[name].to(mine[name].device if name in mine else "cpu") for name in order}

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Each parameter's gradient becomes the sum over the ranks, added in float32; what no rank has stays None."""
        if self.count == 1:
            return
        known = list(parameters)
        have = _added(torch.tensor([float(p.grad is not None) for p in known]))
        for bucket in _buckets([p for p, ranks in zip(known, have.tolist(), strict=True) if ranks]):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = torch.cat([gradient.float().flatten() for gradient in gradients])
            parts = _added(flat.to(_meets_on(flat.device))).split([p.numel() for p in bucket])
            for parameter, gradient, part in zip(bucket, gradients, parts, strict=True):
                parameter.grad = gradient.copy_(part.view_as(gradient))

    def gathered(self, text: str) -> list[str]:
        """Every rank's text, in their order."""
        return [message.decode() for message in self._exchange(text.encode())] if self.count > 1 else [text]

    def wait(self) -> None:
        """Go on when every rank has come here, however long the first one works."""
        if self.count > 1:
            with _together():
                dist.barrier(group=self._patient)

    def from_first(self, text: str) -> str:
        """The first rank's text: what it has decided, for all."""
        return self.gathered(text if self.first else "")[0]

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The block is run by the first rank, once that is done by the first of every other machine, and then by the
        rest: what is fetched or converted on a machine is so by one process."""
        turn = 0 if self.first else 1 if self.local_rank == 0 else 2
        for _ in range(turn):
            self.wait()
        yield
        for _ in range(turn, 2):
            self.wait()

    def _exchange(self, message: bytes) -> list[bytes]:
        """Every rank's message, in the order of the ranks."""
        with _together():
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
            dist.all_gather(sizes, torch.tensor([len(message)]))
            longest = max(1, *(int(size) for size in sizes))  # nothing at all cannot be sent
            padded = torch.frombuffer(bytearray(message.ljust(longest, b"\0")), dtype=torch.uint8)
            parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.count)]
            dist.all_gather(parts, padded)
        return [part.numpy().tobytes()[: int(size)] for part, size in zip(parts, sizes, strict=True)]


ALONE = Ranks()


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """The parameters in their order, in lists of at most `BUCKET` numbers, of which each has one at least."""
    buckets, filled = list[list[nn.Parameter]](), 0
    for parameter in parameters:
        if not buckets or filled + parameter.numel() > BUCKET:
            buckets.append([])
            filled = 0
        buckets[-1].append(parameter)
        filled += parameter.numel()
    return buckets


def _added(flat: Tensor) -> Tensor:
    """The sum of every rank's, in its place."""
    with _together():
        dist.all_reduce(flat)
    return flat


def _meets_on(device: torch.device) -> torch.device:
    """Where tensors of a device are added up: there where the ranks speak by NCCL, else on the CPU."""
    return device if device.type == "cuda" and "cuda:nccl" in dist.get_backend_config() else torch.device("cpu")


@contextmanager
def _together() -> Iterator[None]:
    """A rank that ends closes its connections, which the others meet as a RuntimeError of gloo."""
    try:
        yield
    except RuntimeError as error:
        raise _lost(error) from error


def _lost(error: RuntimeError) -> RankLost:
    return RankLost(f"another rank has ended, or hangs; its own message says why ({str(error).splitlines()[0][:200]})")
