"""Storage of activations and spikes during calibration, in memory up to a budget and then in temporary files."""
import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

GIBI = 2 ** 30
PAGES = 2 ** 20  # bytes from which a tensor gets memory pages of its own


class Store:
    """Tensors by key: in memory until ``budget`` bytes are used, the rest in memory-mapped temporary files.

    A file's name is removed as soon as it is mapped, so the space is given back when the tensor is dropped or the
    process ends, however it ends.

    Args:
        budget: bytes to hold in memory.
        folder: where the files go; the system's folder for temporary files (``TMPDIR``) when None.
    """

    def __init__(self, budget: int, folder: str | Path | None = None) -> None:
        self.budget = budget
        self.folder = Path(folder or tempfile.gettempdir())
        self.in_memory = 0
        self.in_files = 0
        self.peak = 0
        self._tensors: dict[object, tuple[Tensor, bool]] = {}
        self._offered: dict[object, None] = {}  # keys of what can be computed again, oldest first

    def offers(self, nbytes: int) -> bool:
        """Whether :meth:`offer` would keep so many bytes: half of the budget is for what can be computed again."""
        held = sum(self._tensors[key][0].nbytes for key in self._offered)
        return held + nbytes <= self.budget // 2 and self.in_memory + nbytes <= self.budget

    def offer(self, key: object, value: Tensor, copy: bool = True) -> None:
        """Keep ``value`` under ``key`` while there is room in memory; :meth:`put` takes that room.

        Args:
            key, value: what to keep.
            copy: into pages of its own, where it is on the CPU and does not have them already.
        """
        self.drop(key)
        if self.offers(value.nbytes):
            if copy and value.device.type == 'cpu':
                value = _room_for(value).copy_(value)
            self.in_memory += value.nbytes
            self.peak = max(self.peak, self.in_memory + self.in_files)
            self._tensors[key] = value, False
            self._offered[key] = None

    def put(self, key: object, value: Tensor) -> None:
        """Keep a copy of ``value`` under ``key``.

        Raises:
            OSError: the disk cannot hold it; the message says how much is missing where.
        """
        self.drop(key)
        while self._offered and self.in_memory + value.nbytes > self.budget:
            self.drop(next(iter(self._offered)))
        spill = self.in_memory + value.nbytes > self.budget
        if spill and value.nbytes:
            kept = self._mapped(value)
            self.in_files += value.nbytes
        else:
            kept, spill = _room_for(value), False
            self.in_memory += value.nbytes
        kept.copy_(value)
        self.peak = max(self.peak, self.in_memory + self.in_files)
        self._tensors[key] = kept, spill

    def __contains__(self, key: object) -> bool:
        return key in self._tensors

    def get(self, key: object) -> Tensor:
        return self._tensors[key][0]

    def drop(self, key: object) -> None:
        """Forget the tensor under ``key``, if there is one."""
        tensor, spilled = self._tensors.pop(key, (None, False))
        self._offered.pop(key, None)
        if tensor is None:
            return
        if spilled:
            self.in_files -= tensor.nbytes
        else:
            self.in_memory -= tensor.nbytes

    def _mapped(self, like: Tensor) -> Tensor:
        """Map a new file of the size of ``like``."""
        try:
            descriptor, path = tempfile.mkstemp(prefix='mmsnn-', dir=self.folder)
            try:
                # Reserve the blocks now: writing through a map into a full disk would kill the process.
                os.posix_fallocate(descriptor, 0, like.nbytes)
                mapped = torch.from_file(path, shared=True, size=like.nbytes, dtype=torch.uint8)
                return mapped.view(like.dtype).view(like.shape)
            finally:
                os.close(descriptor)
                os.unlink(path)
        except OSError as error:
            needed = (self.in_files + like.nbytes) / GIBI
            raise OSError(error.errno, f'calibration needs {needed:.2g} GiB or more of temporary files, which cannot '
                          f'be made in {self.folder} ({error.strerror}). Set TMPDIR to an existing folder on a larger '
                          'disk, raise memory_budget, or use fewer or smaller calibration images') from error


def own_pages(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An empty tensor on the CPU whose memory goes back to the system as soon as it is dropped.

    Large tensors of many sizes, dropped in another order than they were made in, leave holes in the heap: several GiB
    beyond the budget.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < PAGES:
        return torch.empty(*shape, dtype=dtype)
    return torch.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE), dtype=dtype).view(*shape)


def _room_for(value: Tensor) -> Tensor:
    """The same in shape and memory layout of ``value``."""
    stride = torch.empty_like(value, device='meta').stride()
    return own_pages(value.shape, value.dtype).as_strided(value.shape, stride)


def pack_levels(value: Tensor, unit: Tensor) -> Tensor:
    """Whole multiples of a unit as the smallest integers that tell them exactly; what is none stays as it is."""
    levels = (value / unit).round_()
    if not torch.equal(levels * unit, value):
        return value
    least, most = levels.min(), levels.max()
    for dtype in (torch.uint8, torch.int8, torch.int16):
        if torch.iinfo(dtype).min <= least and most <= torch.iinfo(dtype).max:
            return levels.to(dtype)
    return value


def unpack_levels(stored: Tensor, unit: Tensor) -> Tensor:
    """What :func:`pack_levels` was given."""
    return stored if stored.is_floating_point() else stored.to(unit.dtype).mul_(unit)


def pack_spikes(planes: Tensor, spikes: Tensor, threshold: Tensor, start: int, lowest: int = 0) -> None:
    """Write spikes of ``k threshold`` as the bits of steps ``start`` onwards.

    Args:
        planes: uint8, shape (B, ceil(T / 8), ...), zero where nothing has been written yet. Bit t % 8 of plane
            (b, t // 8) holds bit b of ``k - lowest`` at step t.
        spikes: shape (K, ...).
        threshold: broadcastable to a step's spikes.
        start: number of the first step.
        lowest: the least k that occurs.
    """
    # Operations on operands of one type: torch computes mixed ones, and those that give bool, element by element.
    for step, spike in enumerate(spikes, start):
        if len(planes) == 1 and not lowest:  # one spike or none
            planes[0, step // 8].add_((spike != 0).view(torch.uint8), alpha=1 << step % 8)
            continue
        level = (spike / threshold).round_().sub_(lowest).to(torch.uint8 if len(planes) <= 8 else torch.int32)
        for bit, target in enumerate(planes):
            target[step // 8].add_((level >> bit & 1).to(torch.uint8), alpha=1 << step % 8)


def unpack_spikes(planes: Tensor, threshold: Tensor, start: int, stop: int, lowest: int = 0) -> Tensor:
    """Return the spikes of steps ``start`` up to ``stop``: ``k threshold``, shape (stop - start, ...)."""
    spikes = torch.empty(stop - start, *planes.shape[2:], dtype=threshold.dtype, device=planes.device)
    for step, spike in enumerate(spikes, start):
        if len(planes) == 1:
            place = 1 << step % 8  # a bit worth 2**i times the threshold over 2**i: exact
            spike.copy_(planes[0, step // 8] & place).mul_(threshold / place)
            continue
        level = torch.zeros_like(planes[0, 0], dtype=torch.uint8 if len(planes) <= 8 else torch.int32)
        for bit, source in enumerate(planes):
            level.add_((source[step // 8] >> step % 8 & 1).to(level.dtype), alpha=1 << bit)
        spike.copy_(level).add_(lowest).mul_(threshold)
    return spikes


def mean_spikes(planes: Tensor, threshold: Tensor, time_steps: int, lowest: int = 0) -> Tensor:
    """Return the firing rate, the mean over T steps, of packed spikes; shape (...)."""
    count = torch.full(planes.shape[2:], lowest * time_steps, dtype=torch.int32, device=planes.device)
    for bit, source in enumerate(planes):
        for plane in source:  # the bits of a byte are counted in pairs, then in fours, then all together
            plane = plane - ((plane >> 1) & 0x55)
            plane = (plane & 0x33) + ((plane >> 2) & 0x33)
            count += ((plane + (plane >> 4)) & 0x0f).to(torch.int32) << bit
    return count * (threshold / time_steps)
