"""Calibration in several processes: each holds some of the batches, all arrive at the same network.

Of B batches, numbered as one process would have them, process r of P holds those with index r, r + P, ... Without
``torch.distributed`` there is one process that holds them all, and every function here does nothing.
"""
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, distributed


def processes() -> tuple[int, int]:
    """Number of this process, and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def own(items: Sequence) -> Sequence:
    """This process's share of a list that all processes know."""
    rank, world = processes()
    return items[rank::world]


def owner(index: int) -> tuple[int, int]:
    """The process that holds a batch, and its number there."""
    _, world = processes()
    return index % world, index // world


def total(tensors: Iterable[Tensor]) -> None:
    """Add up tensors over all processes, in place."""
    if processes()[1] > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)


def largest(tensor: Tensor) -> Tensor:
    """The largest value over all processes, in place."""
    if processes()[1] > 1:
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return tensor


def send(tensors: Iterable[Tensor], source: int) -> None:
    """Give every process what one of them has, in place."""
    if processes()[1] > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, source)


def gather(value) -> list:
    """The values of all processes."""
    world = processes()[1]
    values = [value] * world
    if world > 1:
        distributed.all_gather_object(values, value)
    return values


def agree(problem: Exception | None) -> None:
    """Raise in every process what went wrong in one, so that none waits for the others.

    Raises:
        ValueError: the first problem of any process.
    """
    found = [text for text in gather(None if problem is None else str(problem)) if text]
    if problem is not None:
        raise problem
    if found:
        raise ValueError(found[0])


def number_of(items: Sequence, device: torch.device) -> int:
    """How many items all processes have together."""
    count = torch.tensor(len(items), device=device)
    total([count])
    return int(count)
