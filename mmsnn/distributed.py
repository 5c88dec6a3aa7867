"""Calibration in several processes: each holds some of the batches, all arrive at the same network.

Of B batches, numbered as one process would have them, process r of P holds those with index r, r + P, ... Without
``torch.distributed`` there is one process that holds them all, and every function here does nothing.
"""
from collections.abc import Iterable, Sequence

import torch
from mmengine import dist
from torch import Tensor


def own(items: Sequence) -> Sequence:
    """This process's share of a list that all processes know."""
    return items[dist.get_rank()::dist.get_world_size()]


def owner(index: int) -> tuple[int, int]:
    """The process that holds a batch, and its number there."""
    processes = dist.get_world_size()
    return index % processes, index // processes


def total(tensors: Iterable[Tensor]) -> None:
    """Add up tensors over all processes, in place."""
    for tensor in tensors:
        dist.all_reduce(tensor)


def largest(tensor: Tensor) -> Tensor:
    """The largest value over all processes, in place."""
    dist.all_reduce(tensor, op='max')
    return tensor


def send(tensors: Iterable[Tensor], source: int) -> None:
    """Give every process what one of them has, in place."""
    for tensor in tensors:
        dist.broadcast(tensor, source)


def agree(problem: Exception | None) -> None:
    """Raise in every process what went wrong in one, so that none waits for the others.

    Raises:
        ValueError: the first problem of any process.
    """
    if dist.get_world_size() == 1:
        if problem is not None:
            raise problem
        return
    found = [text for text in dist.all_gather_object(None if problem is None else str(problem)) if text]
    if found:
        raise ValueError(found[0]) from problem


def gather(value) -> list:
    """The values of all processes."""
    return dist.all_gather_object(value) if dist.get_world_size() > 1 else [value]


def number_of(items: list, device: torch.device) -> int:
    """How many items all processes have together."""
    count = torch.tensor(len(items), device=device)
    dist.all_reduce(count)
    return int(count)
