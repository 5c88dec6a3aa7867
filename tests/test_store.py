import errno
import os

import pytest
import torch

from mmsnn.calibration.store import Store, mean_spikes, pack_levels, pack_spikes, unpack_levels, unpack_spikes


@pytest.mark.parametrize('lowest, highest', [(0, 1), (-1, 1), (0, 3), (-2, 2), (-32, 32)])
@pytest.mark.parametrize('time_steps, chunk', [(1, 1), (7, 2), (8, 8), (9, 4), (32, 5)])
def test_spikes_survive_packing(time_steps, chunk, lowest, highest):
    threshold = torch.tensor([.3, .7, 1.1]).view(3, 1)
    spikes = torch.randint(lowest, highest + 1, (time_steps, 2, 3, 5)) * threshold
    bits = (highest - lowest).bit_length()
    planes = torch.zeros(bits, -(-time_steps // 8), 2, 3, 5, dtype=torch.uint8)
    for start in range(0, time_steps, chunk):
        pack_spikes(planes, spikes[start:start + chunk], threshold, start, lowest)
    for start in range(0, time_steps, chunk):
        stop = min(start + chunk, time_steps)
        assert torch.equal(unpack_spikes(planes, threshold, start, stop, lowest), spikes[start:stop])
    torch.testing.assert_close(mean_spikes(planes, threshold, time_steps, lowest), spikes.mean(0))


@pytest.mark.parametrize('least, most, dtype', [(0, 255, torch.uint8), (-128, 127, torch.int8), (0, 256, torch.int16)])
def test_whole_multiples_take_the_fewest_bytes(least, most, dtype):
    unit = torch.tensor([.3, .7, 1.1]).view(3, 1, 1) / 7
    levels = torch.randint(least, most + 1, (2, 3, 50, 40)).float()
    levels[0, 0, 0, :2] = torch.tensor([least, most])
    packed = pack_levels(levels * unit, unit)
    assert packed.dtype == dtype and torch.equal(unpack_levels(packed, unit), levels * unit)


@pytest.mark.parametrize('value', [torch.randn(2, 3, 4, 4), torch.full((2, 3, 4, 4), 2. ** 20)])
def test_what_is_no_small_multiple_is_kept_as_it_is(value):
    unit = torch.ones(3, 1, 1)
    assert pack_levels(value, unit) is value and unpack_levels(value, unit) is value


def test_budget_spills_to_files_without_a_name(tmp_path):
    store = Store(budget=1000, folder=tmp_path)
    values = {key: torch.randn(10, 10) for key in 'abcd'}
    for key, value in values.items():
        store.put(key, value)
    assert store.in_memory == 800 and store.in_files == 800 and store.peak == 1600
    assert list(tmp_path.iterdir()) == [], 'nothing is left behind even if the process is killed now'
    assert all(torch.equal(store.get(key), value) for key, value in values.items())
    for key in values:
        store.drop(key)
    assert store.in_memory == store.in_files == 0 and 'a' not in store


def test_large_tensors_of_any_layout_are_kept_as_they_are(tmp_path):
    store = Store(budget=2 ** 24, folder=tmp_path)
    for value in (torch.randn(2, 3, 300, 300).contiguous(memory_format=torch.channels_last),
                  torch.randint(256, (2 ** 21,), dtype=torch.uint8), torch.randn(300, 600, dtype=torch.float64).T):
        store.put('key', value)
        assert torch.equal(store.get('key'), value) and store.in_memory == value.nbytes


def test_replacing_a_tensor_frees_the_old_one(tmp_path):
    store = Store(budget=10 ** 6, folder=tmp_path)
    for _ in range(3):
        store.put('key', torch.zeros(100))
    assert store.in_memory == 400


def test_full_disk_is_a_clear_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr('os.posix_fallocate', full)
    with pytest.raises(OSError, match='TMPDIR') as error:
        Store(budget=0, folder=tmp_path).put('key', torch.zeros(100))
    assert error.value.errno == errno.ENOSPC and list(tmp_path.iterdir()) == []
