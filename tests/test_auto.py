"""compile='auto' (the default): compiled where the images ahead are worth it, by counts alone; found again on disk."""
import copy
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from test_engine import both, inputs
from torch import nn

import mmsnn
from mmsnn.simulation import worth
from mmsnn.simulation.compiling import cache_folder, keep_programs
from mmsnn.simulation.worth import worth_compiling

from networks import Residual, leaves

needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get('CXX', 'g++')) is None, reason='needs a C++ compiler')


def test_worth_grows_with_the_work_and_falls_with_the_layers():
    usual = dict(calls=200, neurons=10_000_000, time_steps=8, layers=49)
    assert worth_compiling(**usual)  # ResNet-50 at 224 x 224
    for key in ('calls', 'neurons', 'time_steps'):
        answers = [worth_compiling(**usual | {key: value}) for value in range(0, 2 * usual[key], 1 + usual[key] // 50)]
        assert answers == sorted(answers) and len(set(answers)) == 2, key
    assert worth_compiling(**usual | dict(calls=150), dtype='bfloat16')
    assert not worth_compiling(**usual | dict(calls=50), dtype='bfloat16')
    answers = [worth_compiling(**usual | dict(layers=layers)) for layers in range(0, 1000, 10)]
    assert answers == sorted(answers, reverse=True) and len(set(answers)) == 2


@needs_compiler
def test_auto_compiles_for_the_calls_ahead_and_gives_the_same_bits(caplog):
    caplog.set_level(logging.INFO, 'mmsnn')
    plain, auto = both(Residual, inputs())
    compiled = copy.copy(plain)
    compiled.compile = True
    expected = leaves(plain(inputs()))
    assert not plain.loop.compile and not auto.loop.compile and 'auto' not in caplog.text, 'nobody said how many'
    for calls, wanted in ((10, False), (10 ** 9, True), (10, False)):
        auto.expect(calls)
        for value, other, same in zip(leaves(auto(inputs())), leaves(compiled(inputs())), expected, strict=True):
            assert torch.equal(value, same) and torch.equal(other, same)
        assert auto.loop.compile == wanted
    costs = []
    for snn in (plain, compiled):
        with mmsnn.CostCounter(snn) as counter:
            snn(inputs())
        costs.append(counter.cost)
    assert costs[0] == costs[1]
    said = [message for message in caplog.messages if "compile='auto'" in message]
    assert [message.split(': ')[1].split(',')[0] for message in said] == ['not compiled', 'compiled', 'not compiled']


def test_what_auto_leaves_alone(monkeypatch, caplog):
    caplog.set_level(logging.INFO, 'mmsnn')
    for options in (dict(dtype='int8'), dict(compile=False)):
        snn = both(Residual, inputs(), **options)[1]
        snn.expect(10 ** 9)
        snn(inputs())
        assert not snn.loop.compile and 'auto' not in caplog.text
    double = mmsnn.convert(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()).double(), 4)
    mmsnn.calibrate(double, [inputs().double()], 'light', progress=False)
    double.expect(10 ** 9)
    assert double(inputs().double()).dtype == torch.float64 and not double.loop.compile and 'auto' not in caplog.text
    snn = both(Residual, inputs())[1]
    monkeypatch.setenv('CXX', 'no-such-compiler')
    snn.expect(10 ** 9)
    snn(inputs())
    assert not snn.loop.compile and caplog.text.count('but there is no C++ compiler') == 1


def test_other_values_are_refused():
    for value in ('yes', None, 1):
        with pytest.raises(ValueError, match=f"compile must be True, False or 'auto', not {value!r}"):
            mmsnn.convert(Residual(), 4, compile=value)


@needs_compiler
@pytest.mark.parametrize('images', [2, 40])
def test_a_test_run_compiles_for_many_images(images, tmp_path, monkeypatch):
    """A runner's loader says how many; what a step saves is exaggerated so that 40 small images are many."""
    pytest.importorskip('mmpretrain')
    from mmengine.config import Config
    from mmengine.registry import DATASETS
    from mmengine.runner import Runner
    from mmpretrain.structures import DataSample

    @DATASETS.register_module(name='AutoImages', force=True)
    class Images(torch.utils.data.Dataset):
        METAINFO = metainfo = dict(classes=list('abcde'))

        def __init__(self, number):
            self.number = number

        def __len__(self):
            return self.number

        def __getitem__(self, index):
            return dict(inputs=inputs(1)[0] + index, data_samples=DataSample().set_gt_label(index % 5))

    loader = dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False))
    runner = Runner.from_cfg(Config(dict(
        default_scope='mmpretrain', work_dir=str(tmp_path), experiment_name=f'auto{images}',
        model=dict(type='mmsnn.SpikingClassifier', time_steps=4, classifier=dict(
            type='mmsnn.TorchClassifier', network=dict(type='networks.Residual'),
            data_preprocessor=dict(num_classes=5))),
        test_dataloader=dict(loader, dataset=dict(type='AutoImages', number=images)), test_cfg=dict(),
        test_evaluator=dict(type='Accuracy'), custom_hooks=[dict(
            type='mmsnn.CalibrationHook', num_images=2, pipeline='light', progress=False,
            dataset=dict(type='AutoImages', number=4))])))
    snn = runner.model.snn
    neurons = sum(8 * 8 for _ in range(3)) * 6
    monkeypatch.setitem(worth.SAVED, 'float32', (worth.START + 3 * worth.EACH_LAYER) / (neurons * 4 * 20))
    runner.test()
    assert snn.loop.compile == (images == 40)
    assert snn.compile == 'auto' and 'compile' not in str(snn.settings)


def test_where_programs_are_kept(monkeypatch, tmp_path):
    for given, kept in ((tmp_path / 'own', tmp_path / 'own'), (Path(tempfile.gettempdir()) / 'torchinductor_me', None)):
        monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(given))
        keep_programs()
        assert os.environ['TORCHINDUCTOR_CACHE_DIR'] == str(kept or cache_folder())
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert cache_folder() == tmp_path / 'mmsnn' / 'inductor'
    monkeypatch.delenv('XDG_CACHE_HOME')
    assert cache_folder() == Path.home() / '.cache' / 'mmsnn' / 'inductor'


@needs_compiler
@pytest.mark.skipif(not hasattr(torch.compiler, 'keep_tensor_guards_unsafe'), reason='this torch keeps no programs')
def test_the_next_process_compiles_nothing(tmp_path):
    program = ('import torch, mmsnn; from torch import nn; from torch._dynamo.utils import counters\n'
               'ann = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Conv2d(3, 3, 1), nn.ReLU()))).eval()\n'
               'snn = mmsnn.convert(ann, 2, compile=True); x = torch.randn(2, 3, 16, 16)\n'
               'mmsnn.calibrate(snn, [x], "light", progress=False); snn(x)\n'
               'print("programs", *(counters["inductor"][f"fxgraph_cache_{kind}"] for kind in ("miss", "hit")))')
    folder = Path(__file__).parent
    environment = {**os.environ, 'XDG_CACHE_HOME': str(tmp_path),
                   'PYTHONPATH': os.pathsep.join(map(str, (folder.parent, folder)))}
    environment.pop('TORCHINDUCTOR_CACHE_DIR', None)
    found = []
    for _ in range(2):  # with other weights each time
        said = subprocess.run([sys.executable, '-c', program], env=environment, check=True, capture_output=True,
                              text=True)
        line, = [line for line in said.stdout.splitlines() if line.startswith('programs')]
        found.append([int(number) for number in line.split()[1:]])
    (compiled, repeated), (again, hits) = found
    assert compiled > 0 and again == 0 and hits == compiled + repeated
    assert (tmp_path / 'mmsnn' / 'inductor').is_dir()
