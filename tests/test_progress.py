"""Progress: a bar on a terminal, one line every half minute in a log, nothing for short work."""
import logging
import sys

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from mmsnn import progress
from mmsnn.progress import LoggedProgress, duration, progress_bar


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [1000.]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    return now


def test_bar_on_a_terminal_only(monkeypatch):
    assert isinstance(progress_bar(range(3), 'images'), LoggedProgress)
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    bar = progress_bar(range(3), 'images', unit='image')
    assert isinstance(bar, tqdm) and list(bar) == [0, 1, 2]


def test_one_line_every_half_minute(clock, caplog, capsys):
    caplog.set_level(logging.INFO, 'mmsnn')
    bar = progress_bar(total=100, desc='calibration')
    for number in range(100):
        clock[0] += 1
        bar.set_postfix_str(f'layer{number}', refresh=False)
        bar.update()
    bar.close()
    assert caplog.messages == ['calibration: 30 of 100 steps (30%), about 70 s left, 30 s so far; layer29',
                               'calibration: 60 of 100 steps (60%), about 40 s left, 60 s so far; layer59',
                               'calibration: 90 of 100 steps (90%), about 10 s left, 90 s so far; layer89']
    assert capsys.readouterr() == ('', '')


def test_short_work_says_nothing(clock, caplog):
    caplog.set_level(logging.INFO, 'mmsnn')
    for _ in progress_bar(range(29), 'thresholds', unit='batch'):
        clock[0] += 1
    assert not caplog.messages


def test_work_of_unknown_length(clock, caplog):
    caplog.set_level(logging.INFO, 'mmsnn')
    assert list(progress_bar(iter('ab'), 'images', unit='image')) == ['a', 'b']
    with progress_bar(desc='images', unit='image') as bar:
        clock[0] += 40
        bar.update(7)
    assert caplog.messages == ['images: 7 images, 40 s so far']


def test_nobody_has_set_up_logging(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress.LOGGER, 'hasHandlers', lambda: False)
    bar = progress_bar(total=2, desc='synthesis')
    clock[0] += 31
    bar.update()
    assert capsys.readouterr().err == 'synthesis: 1 of 2 steps (50%), about 31 s left, 31 s so far\n'
    assert isinstance(progress_bar(total=2, disable=True), tqdm)


@pytest.mark.parametrize('seconds, text', [(0, '0 s'), (99, '99 s'), (100, '2 min'), (720, '12 min'), (12600, '3.5 h')])
def test_durations(seconds, text):
    assert duration(seconds) == text


class Stream(IterableDataset):
    """What has no length, though a DataLoader of it has the method."""

    def __iter__(self):
        return iter(range(3))


def test_what_refuses_to_tell_its_length_or_truth_is_iterated():
    assert len(list(progress_bar(DataLoader(Stream()), 'images'))) == 3
    assert [int(value) for value in progress_bar(torch.arange(3), 'images')] == [0, 1, 2]
