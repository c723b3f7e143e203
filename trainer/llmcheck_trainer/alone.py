"""The process group of a run with one rank: collectives among one are copies, and need no NCCL.

NCCL would take 0.9 GiB of the GPU for them (measured: benchmarks/ranks/data/train-h100-2026-11.jsonl), and its start a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _create_work_from_future  # type: ignore[attr-defined,unused-ignore]  # its stub lacks it

NAME = "alone"


class Alone(dist.ProcessGroup):
    """What PyTorch and DeepSpeed ask of a group of one. Sending to others is refused: there are none."""

    def __init__(self, rank: int, size: int) -> None:
        if size != 1:
            raise ValueError(f"a group of {size} ranks is not alone")
        super().__init__(rank, size)
        self._name = ""

    def getBackendName(self) -> str:  # noqa: N802
        return NAME

    def _set_group_name(self, name: str) -> None:
        super()._set_group_name(name)
        self._name = name

    @property
    def group_name(self) -> str:
        """The name that PyTorch gave it, also while it is being destroyed: the base class asks its backend, and there is none."""
        return self._name

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0

    def stays(self, *_args: Any, **_kwargs: Any) -> Any:
        """What one rank reduces or receives is what it had."""
        return _done()

    allreduce = allreduce_coalesced = broadcast = reduce = barrier = monitored_barrier = stays

    def one(self, output: torch.Tensor, given: torch.Tensor, *_args: Any, **_kwargs: Any) -> Any:
        """One tensor to one."""
        _copy(output, given)
        return _done()

    _allgather_base = all_gather_single = _reduce_scatter_base = reduce_scatter_single = alltoall_base = all_to_all_single = one

    def several(self, outputs: Sequence[torch.Tensor], given: Sequence[torch.Tensor], *_args: Any, **_kwargs: Any) -> Any:
        """Each tensor to its own."""
        for output, tensor in zip(outputs, given, strict=True):
            _copy(output, tensor)
        return _done()

    alltoall = several
    allgather_into_tensor_coalesced = all_gather_single_coalesced = several
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced = several

    def spread(self, outputs: Sequence[Sequence[torch.Tensor]], given: Sequence[torch.Tensor], *_args: Any, **_kwargs: Any) -> Any:
        """Each tensor to the list that holds all ranks'."""
        for output, tensor in zip(outputs, given, strict=True):
            _copy(output[0], tensor)
        return _done()

    allgather = gather = spread

    def allgather_coalesced(self, outputs: Sequence[Sequence[torch.Tensor]], given: Sequence[torch.Tensor], *_args: Any) -> Any:
        """The lists of all ranks, each with all tensors."""
        return self.several(outputs[0], given)

    def join(self, outputs: Sequence[torch.Tensor], given: Sequence[Sequence[torch.Tensor]], *_args: Any, **_kwargs: Any) -> Any:
        """The other way round."""
        for output, tensors in zip(outputs, given, strict=True):
            _copy(output, tensors[0])
        return _done()

    reduce_scatter = scatter = join

    def _start_coalescing(self, *_args: Any) -> None:
        pass

    def _end_coalescing(self, *_args: Any) -> Any:
        return _done()

    _known: ClassVar[bool] = False

    @classmethod
    def start(cls) -> None:
        """Make it the default group."""
        if not cls._known:
            dist.Backend.register_backend(NAME, lambda _store, rank, size, _timeout: cls(rank, size), devices=["cpu", "cuda"])
            cls._known = True
        dist.init_process_group(NAME, store=dist.HashStore(), rank=0, world_size=1)


def _copy(output: torch.Tensor, given: torch.Tensor) -> None:
    if output.data_ptr() != given.data_ptr():
        output.view(-1).copy_(given.reshape(-1))


def _done() -> Any:
    future: torch.futures.Future[None] = torch.futures.Future()
    future.set_result(None)
    return _create_work_from_future(future)
