"""The command: its help, a line for every mistake of the user's, a traceback for every bug."""
import json
import operator
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmpretrain')

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

import mmsnn
from mmsnn.cli import COMMANDS, main
from mmsnn.commands import export as export_command
from mmsnn.commands.check_export import together
from mmsnn.experiments.jobs import run_jobs
from mmsnn.experiments.methods import parse_pipeline
from mmsnn.export.formats import NEEDS
from mmsnn.machine import CORES
from mmsnn.mistakes import Mistake, mistake_of
from mmsnn.simulation.settings import read_settings

from networks import randomise_norms

ROOT = Path(__file__).parent.parent
CONFIG = '''
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmsnn'])
model = dict(
    type='mmsnn.SpikingClassifier', time_steps=8,
    classifier=dict(
        type='ImageClassifier', backbone=dict(type='mmsnn.CifarResNet', depth=8, base_channels=4),
        neck=dict(type='GlobalAveragePooling'), head=dict(type='LinearClsHead', num_classes=5, in_channels=16)))
'''
HOOK = "custom_hooks = [dict(type='mmsnn.CalibrationHook', pipeline='light', num_images=2, images='images.pth')]\n"
TEST = "test_dataloader = dict(dataset=dict())\ntest_evaluator = dict(type='Accuracy')\ntest_cfg = dict()\n"
CALIBRATE = ['calibrate', 'good.py', 'ann.pth', '-o', 'out.pth']


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a user stands: configs, good and bad, and a checkpoint."""
    (tmp_path / 'good.py').write_text(CONFIG + HOOK + TEST)
    (tmp_path / 'no_hook.py').write_text(CONFIG + TEST)
    (tmp_path / 'no_test.py').write_text(CONFIG + HOOK)
    (tmp_path / 'heavy.py').write_text(CONFIG + HOOK.replace('light', 'heavy'))
    (tmp_path / 'unknown.py').write_text((CONFIG + HOOK).replace('LinearClsHead', 'NoSuchHead'))
    (tmp_path / 'not_python.py').write_text('model = dict(\n')
    (tmp_path / 'no_module.py').write_text("custom_imports = dict(imports=['no_such_module'])\n")
    (tmp_path / 'no_scope.py').write_text('model = dict()\n')
    torch.save(dict(state_dict={}), tmp_path / 'ann.pth')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        ann = MODELS.build(Config.fromfile(tmp_path / 'good.py').model).ann
    torch.save(dict(state_dict=ann.state_dict()), tmp_path / 'fits.pth')
    torch.save(dict(state_dict={'snn._settings': torch.zeros(1)}), tmp_path / 'spiking.pth')
    (tmp_path / 'out').mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def says(capsys, *arguments) -> tuple[str, int]:
    """The last line that a command says on stderr, as Python prints it at its exit, and the exit status."""
    with pytest.raises(SystemExit) as stopped:
        main(list(map(str, arguments)))
    if isinstance(stopped.value.code, int):
        return capsys.readouterr().err.removesuffix('\n'), stopped.value.code
    return str(stopped.value.code), 1


@pytest.mark.parametrize('arguments, message', [
    ([], 'required: COMMAND'), (['calibrat'], "invalid choice: 'calibrat'"), (CALIBRATE[:2], 'required: checkpoint'),
    ([*CALIBRATE, '--time-step', 8], 'unrecognized arguments: --time-step 8'),
    ([*CALIBRATE, '--cfg-options', 'model.time_steps'], "takes KEY=VALUE, not 'model.time_steps'"),
    (['sweep', 'good.py', 'ann.pth', '--seeds', 0], 'must be at least 1, not 0'),
    (['sweep', 'good.py', 'ann.pth', '--workers', 'many'], "invalid positive value: 'many'"),
    (['benchmark', 'coffee'], "invalid choice: 'coffee'"),
], ids=lambda value: ' '.join(map(str, value)) if isinstance(value, list) else '')
def test_wrong_arguments_end_in_one_line_and_status_2(capsys, folder, arguments, message):
    line, status = says(capsys, *arguments)
    assert status == 2 and message in line and '\n' not in line and '--help explains the arguments' in line


@pytest.mark.parametrize('arguments, message', [
    (['calibrate', 'nowhere.py', 'ann.pth', '-o', 'out.pth'], "config 'nowhere.py' does not exist"),
    (['calibrate', 'good.py', 'nowhere.pth', '-o', 'out.pth'], "checkpoint 'nowhere.pth' does not exist"),
    (['calibrate', 'good.py', 'ann.pth', '-o', 'out'], "'out' is a folder: name the file to write"),
    (['calibrate', 'not_python.py', 'ann.pth', '-o', 'out.pth'], "config 'not_python.py' cannot be read"),
    (['calibrate', 'no_module.py', 'ann.pth', '-o', 'out.pth'], "config 'no_module.py' cannot be read"),
    (['calibrate', 'no_hook.py', 'ann.pth', '-o', 'out.pth'], 'CalibrationHook'),
    (['calibrate', 'unknown.py', 'ann.pth', '-o', 'out.pth'], 'NoSuchHead is not in the'),
    ([*CALIBRATE, '--cfg-options', 'custom_hooks.7.seed=1'], 'has no place for --cfg-options'),
    ([*CALIBRATE, '--cfg-options', 'model.time_steps=0'], 'time_steps must be an integer of at least 1'),
    (CALIBRATE, 'the checkpoint is not one of this model (SpikingClassifier): every weight is missing'),
    (['calibrate', 'good.py', 'fits.pth', '-o', 'out.pth'], 'images.pth'),
    ([*CALIBRATE, '--cfg-options', 'custom_hooks.0.ruonds=2'], "'ruonds' (did you mean 'rounds'?)"),
    ([*CALIBRATE, '--cfg-options', 'model.tme_steps=4'], "unexpected keyword argument 'tme_steps'"),
    (['calibrate', 'good.py', 'spiking.pth', '-o', 'out.pth'], "'spiking.pth' is calibrated already"),
    (['sweep', 'good.py', 'spiking.pth'], "'spiking.pth' is calibrated already: name the checkpoint of the ANN"),
    (['report', 'good.py', 'spiking.pth'], "'spiking.pth' is calibrated already: name the checkpoint of the ANN"),
    (['synthesise', 'good.py', 'spiking.pth', '-o', 'x.pth', '--size', 8, 8], "'spiking.pth' is calibrated already"),
    (['sweep', 'good.py', 'ann.pth', '--pipelines', 'light:threshold=max', '--thresholds', 'mmse'],
     '--pipelines light:threshold=max sets threshold, and so does --thresholds: give one of them'),
    (['sweep', 'good.py', 'ann.pth', '--pipelines', 'none', 'signed:shift=none', '--shift', 'bias'],
     '--pipelines signed:shift=none sets shift, and so does --shift: give one of them'),
    (['sweep', 'no_test.py', 'ann.pth'], 'the config has no test_dataloader, test_evaluator, test_cfg'),
    (['sweep', 'no_hook.py', 'ann.pth'], 'CalibrationHook'),
    (['sweep', 'good.py', 'ann.pth', '--pipelines', 'heavy'], '--pipelines heavy: pipeline must be one of'),
    (['sweep', 'good.py', 'ann.pth', '--pipelines', 'light:speed=2'], 'unknown calibration options'),
    (['sweep', 'good.py', 'ann.pth', '--pipelines', 'light:max_spikes=few'], '--pipelines light:max_spikes=few: '),
    (['report', 'good.py', 'ann.pth', '--pipelines', 'heavy'], '--pipelines heavy: pipeline must be one of'),
    (['report', 'good.py', 'nowhere.pth'], "checkpoint 'nowhere.pth' does not exist"),
    (['export', 'good.py', 'nowhere.pth', '--format', 'onnx', '-o', 'x.onnx'], "'nowhere.pth' does not exist"),
    (['check-export', 'good.py', 'ann.pth', '--format', 'onnx', '--double'], '--double compares NIR files'),
    (['synthesise', 'nowhere.py', 'ann.pth', '-o', 'x.pth', '--size', 8, 8], "config 'nowhere.py' does not exist"),
    (['benchmark', 'shapes'], 'shapes needs --folder with images'),
    (['benchmark', 'events', '--device', 'cuda'], 'events measures the CPU only'),
    (['benchmark', 'memory', '--pipeline', 'heavy'], 'pipeline must be one of'),
    (['convert-checkpoint', 'good.py', 'ann.pth', 'x.pth'], 'ann.pth does not fit good.py: '),
    (['publish-checkpoint', 'nowhere.pth', 'x.pth'], "checkpoint 'nowhere.pth' does not exist"),
    (['test', 'nowhere.py', 'ann.pth'], "config 'nowhere.py' does not exist"),
    (['test', 'heavy.py', 'ann.pth'], "config 'heavy.py': CalibrationHook: pipeline must be one of"),
    (['test', 'good.py', 'ann.pth', '--cfg-options', 'model.time_steps'], '--cfg-options takes KEY=VALUE'),
    (['test', 'no_scope.py', 'ann.pth'], 'has no default_scope'), (['test'], 'usage: mmsnn test CONFIG'),
    (['train', 'not_python.py'], "config 'not_python.py' cannot be read"),
], ids=lambda value: ' '.join(map(str, value)) if isinstance(value, list) else '')
def test_mistakes_end_in_one_line_and_status_1(capsys, folder, arguments, message):
    line, status = says(capsys, *arguments)
    assert status == 1 and message in line and '\n' not in line


def test_from_a_foreign_checkpoint_to_a_file_for_other_software(folder, capsys):
    """Names of its own, images made of its statistics, calibration, export: each command reads what the last wrote."""
    nir = pytest.importorskip('nir')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        ann = randomise_norms(MODELS.build(Config.fromfile('good.py').model).ann)
    foreign = {f'module.{name}': value for name, value in ann.state_dict().items()}
    torch.save(dict(state_dict=foreign), 'foreign.pth')
    main(['convert-checkpoint', 'good.py', 'foreign.pth', 'ann.pth'])
    assert 'tensors renamed' in capsys.readouterr().out
    state = torch.load('ann.pth', weights_only=True)['state_dict']
    assert torch.equal(state['head.fc.weight'], foreign['module.head.fc.weight'])
    main(['synthesise', 'good.py', 'ann.pth', '-o', 'images.pth', '--size', '16', '16', '--num-images', '2',
          '--batch-size', '1', '--iterations', '1'])
    assert [images.shape for images in torch.load('images.pth', weights_only=True)] == [(1, 3, 16, 16)] * 2
    main([*CALIBRATE, '--cfg-options', 'model.time_steps=4'])
    calibrated = torch.load('out.pth', weights_only=True)['state_dict']
    assert read_settings(calibrated['snn._settings'])[0].items() >= dict(pipeline='light', time_steps=4).items()
    main(['export', 'good.py', 'out.pth', '-o', 'net.nir', '--format', 'nir', '--size', '16', '16', '--cfg-options',
          'model.time_steps=4'])
    graph = nir.read('net.nir')
    assert graph.metadata['time_steps'] == 4 and sum(isinstance(node, nir.IF) for node in graph.nodes.values()) == 7
    main(['publish-checkpoint', 'out.pth', 'small.pth'])
    torch.save(foreign, 'bare.pth')  # weights alone, as torchvision and timm have them
    main(['publish-checkpoint', 'bare.pth', 'published.pth'])
    assert set(torch.load('published.pth', weights_only=True)['state_dict']) == set(foreign)
    torch.save([1], 'empty.pth')
    with pytest.raises(SystemExit, match="checkpoint 'empty.pth' holds no weights"):
        main(['publish-checkpoint', 'empty.pth', 'published.pth'])
    assert Path('small.pth').stat().st_size < Path('out.pth').stat().st_size


def test_a_process_ends_with_one_line(folder):
    for command in (['-m', 'mmsnn'], [str(ROOT / 'tools' / 'calibrate.py')]):
        name = CALIBRATE[:1] if command[0] == '-m' else []
        result = subprocess.run([sys.executable, '-W', 'ignore', *command, *name, 'no_hook.py', *CALIBRATE[2:]],
                                text=True, capture_output=True)
        assert result.returncode == 1 and len(result.stderr.splitlines()) == 1, result.stderr
        assert result.stderr.startswith('mmsnn calibrate: ') and 'CalibrationHook' in result.stderr


def test_images_of_several_sizes_are_refused_by_name():
    with pytest.raises(ValueError, match=r'several sizes, such as \(4, 4\) and \(4, 6\), and a file is for one'):
        together([torch.zeros(1, 3, 4, 6), torch.zeros(1, 3, 4, 4)])
    assert together([torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4, 4)]).shape == (3, 3, 4, 4)


@pytest.mark.parametrize('break_it', [lambda: int('many'), lambda: {}['key'], lambda: [].pop(), lambda: 1 / 0],
                         ids=['ValueError', 'KeyError', 'IndexError', 'ZeroDivisionError'])
def test_a_bug_keeps_its_traceback(monkeypatch, break_it):
    monkeypatch.setattr('mmsnn.commands.info.run', lambda args: break_it())
    with pytest.raises((ValueError, LookupError, ZeroDivisionError)):
        main(['info'])


def test_what_an_error_was_turned_into_counts_while_it_quotes_it():
    def turned(make):
        try:
            try:
                parse_pipeline('heavy')
            except ValueError as error:
                raise make(error) from error
        except Exception as error:
            return mistake_of(error)

    assert turned(lambda error: TypeError(f'class Hook: {error}')).startswith('pipeline must be one of')
    assert turned(lambda error: TypeError('something else')) is None


def test_workers_pass_mistakes_on_and_bugs_too():
    before = dict(os.environ)
    with pytest.raises(SystemExit, match='^pipeline must be one of'):
        list(run_jobs(parse_pipeline, [('light',), ('heavy',)], 1))
    with pytest.raises(ZeroDivisionError):
        list(run_jobs(operator.truediv, [(1, 0)], 1))
    with pytest.raises(Mistake, match='^a worker process was killed, as a system does that runs out of memory'):
        list(run_jobs(os._exit, [(9,)], 1))
    assert dict(os.environ) == before, 'what is meant for workers reaches no other process'


@pytest.mark.parametrize('name', COMMANDS)
def test_help_has_an_example_and_a_clone_has_the_tool(capsys, name):
    with pytest.raises(SystemExit) as stopped:
        main([name, '--help'])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and f'\n    mmsnn {name}' in text and '``' not in text
    tool = ROOT / 'tools' / f'{name.replace("-", "_")}.py'
    if name != 'info':  # which tells about an installation
        assert f"main(['{name}', *sys.argv[1:]])" in tool.read_text()


def test_overview_and_version(capsys):
    with pytest.raises(SystemExit):
        main(['--help'])
    text = capsys.readouterr().out
    assert all(f'\n  {name} ' in text for name in COMMANDS)
    with pytest.raises(SystemExit):
        main(['--version'])
    assert capsys.readouterr().out == f'mmsnn {mmsnn.__version__}\n'


def test_info_tells_what_bug_reports_need(capsys):
    main(['info', '--json'])
    facts = json.loads(capsys.readouterr().out)
    assert facts['mmsnn'] == mmsnn.__version__ and facts['torch'].split()[-1] == torch.__version__.split('+')[0]
    assert facts['python'] == platform.python_version() and f'{CORES} cores' in facts['threads']
    assert {'mmengine', 'compiler', 'processor', 'features', 'gpus'} <= set(facts)
    main(['info'])
    assert f'python         {platform.python_version()}' in capsys.readouterr().out


def test_formats_are_those_that_can_be_written():
    assert set(export_command.FORMATS) == set(NEEDS)
