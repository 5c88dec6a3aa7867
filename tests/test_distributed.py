"""Two processes that share the images arrive at the network of one."""
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

import mmsnn
from mmsnn.distributed import own

sys.path.insert(0, str(Path(__file__).parent))

from networks import Residual, randomise_norms

T = 6
PIPELINES = {
    'light': dict(pipeline='light', rounds=2),
    'advanced': dict(pipeline='advanced', iterations=7, learning_rate=1e-3),
    'signed': dict(pipeline='signed', potential='position'),
    'a bias per step': dict(pipeline='light', bias_per_step=True),
    'currents': dict(pipeline='spike-norm'),
    'balanced': dict(pipeline='none', threshold='balanced'),
}


def setting():
    torch.manual_seed(0)
    return randomise_norms(Residual()).eval(), [torch.randn(2, 3, 12, 12) * scale for scale in (1, 3, 2, .5, 1)]


def calibrate_all(batches, ann):
    states = {}
    for name, options in PIPELINES.items():
        snn = mmsnn.convert(ann, T)
        report = mmsnn.calibrate(snn, batches, progress=False, **options)
        states[name] = snn.state_dict(), [row.error_after for row in report]
    return states


def worker(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    ann, batches = setting()
    states = calibrate_all(own(batches), ann)
    problems = []
    for bad in ([batches[0] * float('nan')] if rank else batches, [] if rank else batches):
        try:
            mmsnn.calibrate(mmsnn.convert(ann, T), bad, 'none', progress=False)
        except ValueError as error:
            problems.append(str(error))
    torch.save((states, problems), f'{folder}/{rank}.pth')
    torch.distributed.destroy_process_group()


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp('processes')
    mp.spawn(worker, (str(folder),), nprocs=2)
    return [torch.load(folder / f'{rank}.pth') for rank in range(2)]


@pytest.fixture(scope='module')
def alone():
    ann, batches = setting()
    return calibrate_all(batches, ann)


@pytest.mark.parametrize('name', PIPELINES)
def test_two_processes_calibrate_as_one(results, alone, name):
    expected, errors = alone[name]
    for states, _ in results:
        state, found = states[name]
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], value) for key, value in expected.items())
        assert errors == pytest.approx(found)


def test_a_problem_of_one_process_is_raised_in_all(results):
    for _, problems in results:
        assert len(problems) == 2 and 'NaN' in problems[0] and 'at least one image' in problems[1]
