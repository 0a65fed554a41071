"""Training in several processes: each takes some images of every step, and their gradients are summed.

Started by ``torchrun``, which sets RANK, WORLD_SIZE and LOCAL_RANK; gloo on CPUs, NCCL on GPUs. Losses are means over
images, and each image's own mean is its process's business, so the sum over processes of gradients that each weighs by
its share of the images is the gradient of one process with all of them. No module is wrapped: names of parameters stay
as they are, and one without a gradient in some process is no trouble.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from ohem.errors import OhemError

_T = TypeVar("_T")
_U = TypeVar("_U")

PATIENCE = timedelta(hours=24)
"""The first process may make proposals for hours while the others wait; one that dies is noticed at once all the same."""


@dataclass(frozen=True)
class Processes:
    """The processes of one training, seen from one of them.

    Attributes:
        rank: of this one, from 0. The first writes, the others only train.
        count: how many there are.
        local_rank: of this one on its machine: which of its GPUs it takes.
        restarts: how often torchrun began again, after one of them died.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    restarts: int = 0

    @classmethod
    def join(cls, device: torch.device) -> "Processes":
        """Meet the others that torchrun started; alone when there are none."""
        if "WORLD_SIZE" not in os.environ:
            return ALONE
        found = cls(*(int(os.environ.get(name, "0")) for name in _VARIABLES))
        if found.count > 1 and not dist.is_initialized():
            # torchrun keeps its store over restarts: without a name for each, addresses of the dead would be found in it.
            store, rank, count = next(rendezvous("env://", timeout=PATIENCE))
            own = dist.PrefixStore(f"restart {found.restarts}", store)  # type: ignore[attr-defined]
            backend = "nccl" if device.type == "cuda" else "gloo"
            if device.type == "cuda":  # NCCL sends objects by way of the current GPU, which is the first one otherwise
                torch.cuda.set_device(found.own_device(device))
            with _others_alive():
                dist.init_process_group(backend, store=own, rank=rank, world_size=count, timeout=PATIENCE)
        return found

    def own_device(self, device: torch.device) -> torch.device:
        """With several processes and no GPU named, each takes the one of its local rank."""
        if self.count > 1 and device.type == "cuda" and device.index is None:
            return torch.device("cuda", self.local_rank)
        return device

    def leave(self) -> None:
        """Part from the others, all of which have come to their end."""
        if self.count > 1 and dist.is_initialized():
            with _others_alive():
                dist.barrier()
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def share(self, items: Sequence[_T]) -> list[_T]:
        """This process's part: neighbours stay together, and no process has over one more than another."""
        start, stop = (len(items) * rank // self.count for rank in (self.rank, self.rank + 1))
        return list(items[start:stop])

    def offset(self, count: int) -> int:
        """The position, among ``count`` items, of the first of this process's part."""
        return count * self.rank // self.count

    def require_enough(self, images_per_step: int) -> None:
        """Each must have an image in every step.

        Raises:
            OhemError: too few.
        """
        if images_per_step < self.count:
            raise OhemError(
                f"images_per_step: found {images_per_step}; allowed with {self.count} processes: {self.count} or more"
            )

    def sum_gradients(self, module: nn.Module) -> None:
        """Replace every trained parameter's gradient by the sum over all processes.

        One that no process has stays None, so that an optimizer passes it over as it would with one process.
        """
        if self.count == 1:
            return
        trained = [p for p in module.parameters() if p.requires_grad]
        had = self._reduce([float(p.grad is not None) for p in trained], trained[0].device, dist.ReduceOp.MAX)
        used = [p for p, any_had in zip(trained, had, strict=True) if any_had]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in used]
        with _others_alive():
            for pending in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
                assert pending is not None
                pending.wait()
        for parameter, gradient in zip(used, gradients, strict=True):
            parameter.grad = gradient

    def sum(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Element by element, over all processes."""
        return self._reduce(values, device, dist.ReduceOp.SUM)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether it is true in one of them."""
        return bool(self._reduce([float(flag)], device, dist.ReduceOp.MAX)[0])

    def gather(self, items: dict[_T, _U]) -> dict[_T, _U]:
        """All processes' items in one dictionary, in each of them."""
        if self.count == 1:
            return items
        parts: list[dict[_T, _U]] = [{}] * self.count
        with _others_alive():
            dist.all_gather_object(parts, items)
        return {key: value for part in parts for key, value in part.items()}

    def tell(self, text: str) -> str:
        """What the first process says, in each of them."""
        if self.count == 1:
            return text
        said = [text]
        with _others_alive():
            dist.broadcast_object_list(said, src=0)
        return said[0]

    def _reduce(self, values: Iterable[float], device: torch.device, operation: dist.ReduceOp.RedOpType) -> list[float]:
        if self.count == 1:
            return list(values)
        total: Tensor = torch.tensor(list(values), dtype=torch.float64, device=device)
        with _others_alive():
            dist.all_reduce(total, op=operation)
        return list(total.tolist())


@contextmanager
def _others_alive() -> Iterator[None]:
    """Say in one line what torch says in fifty when another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise OhemError(
            f"another process of this training stopped ({str(error).splitlines()[0][:120]});"
            " allowed after mending it: ohem train --resume RUN"
        ) from error


def is_first() -> bool:
    """Whether this process is the one that speaks: alone, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT")

ALONE = Processes()
