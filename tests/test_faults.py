"""What goes wrong around a calibration ends in success, or in one clear error that says what to do.

``FAULTS`` lists every fault with the test that provokes it; docs/faults.md explains them. ``MMSNN_KILLS=20`` kills a
calibration that often.
"""
import json
import os
import pickle
import random
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip('mmpretrain')

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner.checkpoint import load_checkpoint
from mmpretrain.utils import register_all_modules

import mmsnn
from mmsnn.calibration.store import Store
from mmsnn.cli import main
from mmsnn.files import check_writable, save_checkpoint, save_json, write_file
from mmsnn.mistakes import mistake_of
from mmsnn.openmmlab.checkpoints import check_checkpoint
from mmsnn.openmmlab.hooks import test_pipeline as transforms_of_the_test
from mmsnn.simulation.settings import read_settings

from networks import Residual, randomise_norms

ROOT = Path(__file__).parent.parent
register_all_modules()
KILLS = int(os.environ.get('MMSNN_KILLS', 2))
HERE = 'test_faults.py::test_'
FORMS = 'test_forms.py::test_'
UNSEEN = 'test_unseen_'
FAULTS = {
    'killed while calibrating': HERE + 'calibration_can_be_killed_at_any_time',
    'killed while writing': HERE + 'no_part_of_a_file_is_ever_seen',
    'interrupted, then calibrated again': 'test_calibration.py::test_interrupted_weights_calibration_can_be_repeated',
    'disk full while writing': HERE + 'full_disk',
    'disk full for temporary files': HERE + 'full_disk',
    'folder for temporary files missing': HERE + 'missing_folder_for_temporary_files',
    'output cannot be written': HERE + 'output_that_cannot_be_written_is_refused_before_the_work',
    'NaN in an image': 'test_calibration.py::test_unusable_batches_are_refused',
    'NaN or infinity in an image that is simulated':
        'test_engine.py::test_inputs_that_neurons_would_hide_are_refused',
    'network overflows': 'test_calibration.py::test_overflowing_network_names_the_layer',
    'damaged image': HERE + 'damaged_image_is_named',
    'damaged file of images': HERE + 'damaged_file_of_images_is_named',
    'no calibration images': 'test_calibration.py::test_unusable_batches_are_refused',
    'fewer images than asked for': 'test_tools.py::test_ann_checkpoint_is_untouched_when_calibration_fails',
    'images from 1 x 1 to 1333 x 800': HERE + 'images_of_any_size',
    'another size than calibrated per position': HERE + 'another_size_than_calibrated_per_position',
    'checkpoint missing, truncated or of something else': HERE + 'unusable_checkpoint_is_named',
    'checkpoint that executes code': HERE + 'checkpoint_cannot_execute_code',
    'ANN checkpoint of another depth': 'test_backbone.py::test_checkpoint_of_another_backbone_is_refused',
    'calibrated checkpoint of another depth': HERE + 'calibrated_state_of_another_network_is_refused',
    'calibrated for another T': 'test_backbone.py::test_calibrated_checkpoint_for_other_time_steps_is_refused',
    'calibrated with another pipeline':
        'test_tools.py::test_other_pipeline_or_time_steps_than_the_checkpoint_are_refused',
    'calibrated with other options or another seed':
        'test_checks.py::test_other_options_than_the_checkpoint_are_refused',
    'calibrated on other images than the config names':
        'test_checks.py::test_other_images_than_the_checkpoint_are_worth_a_warning',
    'checkpoint of another detector': 'test_checks.py::test_checkpoint_must_have_the_whole_model',
    'calibrated checkpoint with the ANN\'s config':
        'test_checks.py::test_calibrated_checkpoint_for_the_config_of_an_ann_is_refused',
    'calibrated checkpoint calibrated again': HERE + 'commands_refuse_with_one_line',
    'calibrated checkpoint for a sweep, a report or a synthesis':
        'test_cli.py::test_mistakes_end_in_one_line_and_status_1',
    'config, checkpoint or data changed since a sweep or report began':
        'test_sweep.py::test_rows_of_a_config_or_checkpoint_before_a_change_are_not_taken_for_these',
    'two sweeps or reports in one folder at once':
        'test_sweep.py::test_rows_that_another_run_has_stored_meanwhile_are_kept',
    'damaged rows of a sweep or report': 'test_sweep.py::test_damaged_rows_are_named',
    'misspelt pipeline or option': 'test_checks.py::test_choices_are_checked_when_the_hook_is_built',
    'options in a config whose pipeline a sweep does not run': 'test_sweep.py::test_options_of_a_job',
    'state of an older version': HERE + 'state_of_an_older_version_computes_the_same',
    'state of a newer version, or damaged': HERE + 'unreadable_settings_are_refused',
    'EMAHook': 'test_tools.py::test_wrong_configs_say_what_is_wrong',
    'test-time augmentation': HERE + 'time_augmentation_asks_for_a_calibrated_checkpoint',
    'automatic mixed precision': HERE + 'mixed_precision_changes_nothing',
    'wrapped, scripted or compiled network': FORMS + 'wrapped_and_compiled_networks_are_refused_in_one_line',
    'a compiler that fails on a part': 'test_engine.py::test_a_part_that_the_compiler_fails_on_runs_plainly',
    'no C++ compiler': 'test_engine.py::test_without_a_compiler_simulation_goes_on_and_says_so',
    'checks in `forward` that raise, parts of a tensor assigned, sizes rounded by Python, hooks that change values':
        UNSEEN + 'networks.py::test_forward_converts_exactly_simulates_and_is_pickled',
    'assignment that a trace would lose':
        UNSEEN + 'networks.py::test_assignments_that_a_trace_would_lose_are_refused',
    'recurrent layer in a differential code':
        UNSEEN + 'networks.py::test_recurrent_layers_are_refused_by_name_and_can_be_left_analog',
    'another size than that of `example`': UNSEEN + 'networks.py::test_other_sizes_than_the_examples_are_refused',
    'detector without a neck, with parameters of its own, with a head of several inputs':
        UNSEEN + 'detectors.py::test_detector_loads_predicts_and_is_calibrated',
    'head that cannot be traced': UNSEEN + 'detectors.py::test_what_cannot_be_traced_is_named_with_the_way_out',
    'float16 or bfloat16 network': FORMS + 'half_precision_is_refused_with_what_to_do',
    'affine for some arguments alone': 'test_operations.py::test_what_is_not_affine_is_refused',
    'operations on dimension 0, batch sizes read from the input':
        'test_time_axis.py::test_whatever_happens_to_dimension_0_happens_within_a_step',
    'weights computed from parameters': FORMS + 'subclasses_become_the_layers_that_they_are',
    'pruned or parametrised layers': FORMS + 'computed_weights_become_plain_ones',
    'operations on the image or on parameters alone': FORMS + 'what_does_not_vary_in_time_is_not_refused',
    'averages of weights left in a checkpoint':
        'test_backbone.py::test_leftover_averages_of_weights_are_named_and_not_used',
    'calibration batches with labels': 'test_batches.py::test_other_batches_are_refused_in_one_line',
    'gradient checkpointing': 'test_backbone.py::test_every_resnet_variant_converts',
    'deformable convolution among what spikes': 'test_backbone.py::test_deformable_convolutions_are_refused_by_name',
    'deformable convolution left analog': HERE + 'deformable_convolutions_may_stay_analog',
}


@pytest.mark.parametrize('fault', FAULTS)
def test_every_fault_is_tested_and_documented(fault):
    file, name = FAULTS[fault].split('::')
    assert f'def {name}(' in (ROOT / 'tests' / file).read_text()
    assert f'| {fault} |' in (ROOT / 'docs' / 'faults.md').read_text()


def test_documentation_lists_no_other_faults():
    rows = re.findall(r'^\| ([^|]+) \|', (ROOT / 'docs' / 'faults.md').read_text(), re.MULTILINE)
    assert sorted(set(rows) - {'fault', '---'}) == sorted(FAULTS)


# --- processes that are killed -----------------------------------------------------------------------------------

CONFIG = '''
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmsnn'])
model = dict(
    type='mmsnn.SpikingClassifier', time_steps=8,
    classifier=dict(
        type='ImageClassifier', backbone=dict(type='mmsnn.CifarResNet', depth={depth}, base_channels=4),
        neck=dict(type='GlobalAveragePooling'), head=dict(type='LinearClsHead', num_classes=5, in_channels=16)))
custom_hooks = [dict(type='mmsnn.CalibrationHook', pipeline='advanced', iterations=8, num_images=16, batch_size=8,
                     images='{folder}/images.pth')]
work_dir = '{folder}/work'
'''


def config(folder, depth=20):
    path = folder / f'resnet{depth}.py'
    path.write_text(CONFIG.format(folder=folder, depth=depth))
    return path


def build(cfg):
    init_default_scope('mmpretrain')
    return MODELS.build(cfg.model)


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    """A folder with the config of a small network, its ANN's checkpoint, images, and what calibrating them gives."""
    folder = tmp_path_factory.mktemp('faults')
    torch.manual_seed(0)
    model = build(Config.fromfile(config(folder)))
    save_checkpoint(randomise_norms(model.ann), folder / 'ann.pth')
    write_file([torch.randn(8, 3, 32, 32) for _ in range(2)], folder / 'images.pth')
    return folder


def command(work, out):
    script = ROOT / 'tools' / 'calibrate.py'
    return list(map(str, [sys.executable, script, config(work), work / 'ann.pth', '-o', out]))


def calibrate(work, out, kill=None):
    """Run tools/calibrate.py; return how many seconds it took from the beginning of the calibration to the file's end.

    Args:
        work: see the fixture.
        out: file to write.
        kill: seconds after which to kill it with SIGKILL, from the beginning of the calibration.
    """
    with subprocess.Popen(command(work, out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env=dict(os.environ, OMP_NUM_THREADS='1')) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if 'calibrating' in line:
                break
        start = time.monotonic()
        if kill is not None:
            try:
                process.wait(kill)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        for line in process.stdout:
            lines.append(line)
            if 'saved' in line:
                seconds = time.monotonic() - start
        process.wait()
        assert process.returncode in ((0,) if kill is None else (0, -signal.SIGKILL)), ''.join(lines)[-3000:]
    return seconds if kill is None else kill


def state(path):
    return torch.load(path, weights_only=True)['state_dict']


def same(one, other):
    """Equal bit by bit, values that are NaN included."""
    return one.keys() == other.keys() and all(
        value.numpy().tobytes() == other[key].numpy().tobytes() for key, value in one.items())


def test_calibration_can_be_killed_at_any_time(work, tmp_path):
    out = tmp_path / 'out' / 'spiking.pth'
    seconds = calibrate(work, tmp_path / 'uninterrupted.pth')
    expected = state(tmp_path / 'uninterrupted.pth')
    draw, complete = random.Random(0), 0
    for number in range(KILLS):
        calibrate(work, out, kill=draw.uniform(0, seconds) if number else 0)
        for path in out.parent.iterdir():  # leftovers too: none may pass for a checkpoint that it is not
            try:
                found = state(path)
            except Exception:
                assert path != out
            else:
                assert same(found, expected)
        complete += out.exists()
        out.unlink(missing_ok=True)
    print(f'{KILLS} runs killed within {seconds:.1f} s, {KILLS - complete} of them before the file was there')
    assert complete < KILLS
    calibrate(work, out)
    assert same(state(out), expected)


WRITER = '''
import sys, torch
from mmsnn.files import write_file
values = [dict(state_dict={str(i): torch.full((500_000,), float(value)) for i in range(8)}) for value in range(2)]
print('writing', flush=True)
while True:
    for value in values:
        write_file(value, sys.argv[1])
'''


def test_no_part_of_a_file_is_ever_seen(tmp_path):
    draw, path = random.Random(0), tmp_path / 'file.pth'
    for _ in range(KILLS):
        with subprocess.Popen([sys.executable, '-c', WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            while not path.exists():
                time.sleep(.01)
            time.sleep(draw.uniform(0, .3))
            process.kill()
        values = torch.cat(list(state(path).values()))
        assert len(values) == 4_000_000 and len(values.unique()) == 1


# --- disks and folders -------------------------------------------------------------------------------------------


@contextmanager
def disk_for(size):
    """Let no file grow beyond ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk(tmp_path):
    write_file(dict(before=True), tmp_path / 'file.pth')
    with disk_for(100_000):
        with pytest.raises(OSError, match='file.pth could not be written completely: is the disk full'):
            write_file(dict(x=torch.zeros(10 ** 6)), tmp_path / 'file.pth')
        with pytest.raises(OSError, match='Set TMPDIR to an existing folder on a larger disk'):
            Store(budget=0, folder=tmp_path).put('key', torch.zeros(10 ** 6))
    assert [path.name for path in tmp_path.iterdir()] == ['file.pth']
    assert torch.load(tmp_path / 'file.pth', weights_only=True) == dict(before=True)
    save_json([], tmp_path / 'rows.json')
    with disk_for(100_000), pytest.raises(OSError, match='rows.json could not be written completely') as full:
        save_json(list(range(10 ** 5)), tmp_path / 'rows.json')
    assert mistake_of(full.value) and (tmp_path / 'rows.json').read_text() == '[]'


def test_missing_folder_for_temporary_files(tmp_path, monkeypatch):
    """Files that are in use have no name and outlive their folder; a new one cannot be made."""
    folder = tmp_path / 'gone'
    folder.mkdir()
    store = Store(budget=0, folder=folder)
    store.put('first', torch.ones(3))
    folder.rmdir()
    assert torch.equal(store.get('first'), torch.ones(3))
    with pytest.raises(OSError, match=r'cannot be made in .*gone \(No such file or directory\). Set TMPDIR'):
        store.put('second', torch.ones(3))
    monkeypatch.setattr('tempfile.tempdir', str(folder))
    snn = mmsnn.convert(randomise_norms(Residual()), 4)
    with pytest.raises(OSError, match='Set TMPDIR'):
        mmsnn.calibrate(snn, [torch.randn(1, 3, 16, 16)], 'light', memory_budget=0, progress=False)
    assert snn.settings is None


def test_output_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / 'file').touch()
    # /proc is read-only even for root
    for path in (Path('/proc/out.pth'), Path('/proc/folder/out.pth'), tmp_path / 'file' / 'out.pth'):
        with pytest.raises(SystemExit, match=f"'{path}' cannot be written .* name a file in a folder"):
            check_writable(path)
    check_writable(tmp_path / 'new' / 'out.pth')
    assert list((tmp_path / 'new').iterdir()) == []


@pytest.mark.parametrize('command', [
    ['calibrate', 'config.py', 'ann.pth', '-o'], ['synthesise', 'config.py', 'ann.pth', '--size', '8', '8', '-o'],
    ['export', 'config.py', 'ann.pth', '--format', 'onnx', '-o'], ['publish-checkpoint', 'ann.pth'],
    ['convert-checkpoint', 'config.py', 'ann.pth']])
def test_no_command_writes_over_what_it_reads(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    torch.save({}, 'ann.pth')
    Path('config.py').write_text('model = dict()\n')
    Path('linked.pth').symlink_to('ann.pth')
    before = Path('ann.pth').read_bytes()
    for name in ('ann.pth', './ann.pth', 'linked.pth'):
        with pytest.raises(SystemExit, match=f"'{Path(name)}' is read, and would be lost: name another file"):
            main([*command, name])
    assert Path('ann.pth').read_bytes() == before


# --- images ------------------------------------------------------------------------------------------------------


def test_damaged_image_is_named(tmp_path):
    import cv2
    import numpy as np
    for split in ('train', 'test'):
        (tmp_path / split / 'class').mkdir(parents=True)
        cv2.imwrite(str(tmp_path / split / 'class' / '0.png'), np.random.default_rng(0).integers(0, 255, (32, 32, 3)))
    cfg = Config.fromfile(ROOT / 'configs' / 'resnet_cifar' / 'resnet20_snn-light_cifar10.py')
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = str(tmp_path)
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model | dict(data_preprocessor=cfg.data_preprocessor))
    hook = mmsnn.CalibrationHook(num_images=1, progress=False)
    assert next(hook.batches(model, cfg)).shape == (1, 3, 32, 32)
    image = tmp_path / 'train' / 'class' / '0.png'
    image.write_bytes(image.read_bytes()[:60])
    with pytest.raises(ValueError, match=r'image 0 of the calibration data set cannot be prepared .*0\.png\): repair'):
        next(hook.batches(model, cfg))


@pytest.mark.parametrize('content', [b'', b'PK\3\4 and no more', 'a dictionary'])
def test_damaged_file_of_images_is_named(tmp_path, content):
    path = tmp_path / 'images.pth'
    if content == 'a dictionary':
        torch.save(dict(a=1), path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match='images.pth holds no batches of images as tools/synthesise.py writes them'):
        next(mmsnn.CalibrationHook(images=str(path)).batches(nn.Linear(1, 1), None))


def fully_convolutional():
    """Of stride 32, as a detector's backbone."""
    layers = [nn.Conv2d(3, 4, 7, 2, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for _ in range(3):
        layers += [nn.Conv2d(4, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU()]
    return randomise_norms(nn.Sequential(*layers)).eval()


@pytest.mark.parametrize('pipeline', ['light', 'signed'])
def test_images_of_any_size(pipeline):
    ann = fully_convolutional()
    sizes = [(1, 1), (1, 40), (33, 31), (800, 1333)]
    data = [torch.randn(1, 3, *size) for size in sizes]
    snn = mmsnn.convert(ann, 4)
    mmsnn.calibrate(snn, data, pipeline, progress=False)
    for x in data:
        output, expected = snn(x), ann(x)
        assert output.shape == expected.shape and output.isfinite().all()
    assert (output - expected).norm() < .3 * expected.norm()


def test_another_size_than_calibrated_per_position():
    snn = mmsnn.convert(fully_convolutional(), 4)
    mmsnn.calibrate(snn, [torch.randn(1, 3, 64, 64)], 'signed', potential='position', progress=False)
    with pytest.raises(ValueError, match=r"Use images of the calibrated size, or calibrate with potential='channel'"):
        snn(torch.randn(1, 3, 64, 96))


# --- checkpoints -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('damage, message', [
    (lambda path: path.unlink(), 'does not exist'),
    (lambda path: path.write_bytes(path.read_bytes()[:-1000]), 'is damaged or no checkpoint .*copy or make it again'),
    (lambda path: path.write_bytes(path.read_bytes()[:1000]), 'is damaged or no checkpoint'),
    (lambda path: path.write_bytes(b''), 'is damaged or no checkpoint'),
    (lambda path: path.write_text('<html>404</html>'), 'is damaged or no checkpoint'),
], ids=['missing', 'end missing', 'beginning only', 'empty', 'a web page'])
def test_unusable_checkpoint_is_named(work, tmp_path, damage, message):
    path = tmp_path / 'ann.pth'
    path.write_bytes((work / 'ann.pth').read_bytes())
    check_checkpoint(str(path))
    damage(path)
    with pytest.raises(SystemExit, match=f"checkpoint '{path}' {message}"):
        check_checkpoint(str(path))


def test_tools_end_with_one_line(work, tmp_path):
    (tmp_path / 'ann.pth').write_bytes((work / 'ann.pth').read_bytes()[:1000])
    for name, arguments in (('calibrate', ['-o', str(tmp_path / 'out.pth')]), ('test', [])):
        result = subprocess.run([sys.executable, str(ROOT / 'tools' / f'{name}.py'), str(config(work)),
                                 str(tmp_path / 'ann.pth'), *arguments], text=True, capture_output=True)
        assert result.returncode == 1 and 'Traceback' not in result.stderr
        assert re.search(r"checkpoint '.*ann.pth' is damaged", result.stderr.splitlines()[-1])


def test_commands_refuse_with_one_line(work, tmp_path):
    path = tmp_path / 'snn.pth'
    calibrate(work, path)
    content = path.read_bytes()
    stored = read_settings(torch.load(path, weights_only=True)['state_dict']['snn._settings'])[0]
    assert stored['images'] == dict(number=16, source='images.pth', seed=0, batch_size=8)
    again = [str(config(work)), str(path), '-o', str(path)]
    misspelt = [str(config(work)), str(work / 'ann.pth'), '-o', str(path), '--cfg-options',
                'custom_hooks.0.ietrations=3']
    for arguments, message in ((again, r"checkpoint '.*snn.pth' is calibrated already"),
                               (misspelt, r"'ietrations' \(did you mean 'iterations'\?\)")):
        result = subprocess.run([sys.executable, str(ROOT / 'tools' / 'calibrate.py'), *arguments], text=True,
                                capture_output=True)
        assert result.returncode == 1 and 'Traceback' not in result.stderr and 'saved' not in result.stdout
        assert re.search(message, result.stderr.splitlines()[-1])
        assert path.read_bytes() == content


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_checkpoint_cannot_execute_code(work, tmp_path):
    path, marker = tmp_path / 'malicious.pth', tmp_path / 'executed'
    torch.save(dict(state_dict=torch.load(work / 'ann.pth', weights_only=True)['state_dict'],
                    meta=Malicious(marker)), path)
    with pytest.raises(SystemExit, match='holds more than tensors and plain data .*mkdir.* is not loaded'):
        check_checkpoint(str(path))
    # Behind the tools' check as well: mmengine would fall back to pickle.
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(nn.Linear(1, 1), str(path))
    with pytest.raises(ValueError, match='holds no batches of images'):
        next(mmsnn.CalibrationHook(images=str(path)).batches(nn.Linear(1, 1), None))
    assert not marker.exists()
    with open(path, 'rb') as file:  # the file does what it should not where nothing forbids it
        os.environ.pop('TORCH_FORCE_WEIGHTS_ONLY_LOAD')
        try:
            torch.load(file, weights_only=False)
        finally:
            os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    assert marker.exists()


def calibrated(depth, folder):
    model = build(Config.fromfile(config(folder, depth)))
    model.calibrate([torch.randn(2, 3, 32, 32)], 'none', progress=False)
    return model


@pytest.mark.parametrize('one, other', [(20, 32), (32, 20)])
def test_calibrated_state_of_another_network_is_refused(tmp_path, one, other):
    """mmengine does not load strictly: it would leave half a network that looks calibrated."""
    save_checkpoint(calibrated(one, tmp_path), tmp_path / 'snn.pth')
    model = build(Config.fromfile(config(tmp_path, other)))
    with pytest.raises(RuntimeError, match='of another network(.|\n)*Use the config that it was calibrated with'):
        load_checkpoint(model, str(tmp_path / 'snn.pth'), strict=False)
    assert not model.calibrated


def edited(snn, edit):
    """A state whose settings have been changed."""
    settings = json.loads(bytes(snn.settings and snn.state_dict()['_settings'].tolist()))
    text = edit(settings)
    text = text if isinstance(text, bytes) else json.dumps(settings).encode()
    return dict(snn.state_dict(), _settings=torch.tensor(list(text), dtype=torch.uint8))


def test_state_of_an_older_version_computes_the_same():
    ann, x = randomise_norms(Residual()), torch.randn(2, 3, 16, 16)
    snn = mmsnn.convert(ann, 4)
    mmsnn.calibrate(snn, [x], 'light', progress=False)

    def before_bursts(settings):
        for name in ('signed', 'max_spikes', 'max_rate', 'bias_per_step', 'rounds', 'tune', 'blockwise'):
            del settings[name]

    other = mmsnn.convert(ann, 4)
    other.load_state_dict(edited(snn, before_bursts))
    assert torch.equal(other(x), snn(x)) and other.settings['max_rate'] == 1
    mmsnn.calibrate(other, [x], 'light', progress=False)  # asks whether weights have been calibrated


@pytest.mark.parametrize('edit', [
    lambda settings: settings.update(reset='leaky'), lambda settings: settings.update(leak=.5),
    lambda settings: settings.pop('time_steps'), lambda settings: b'{"pipeline": "li', lambda settings: b'[]',
], ids=['unknown value', 'unknown choice', 'no T', 'truncated', 'something else'])
def test_unreadable_settings_are_refused(edit):
    ann = randomise_norms(Residual())
    snn = mmsnn.convert(ann, 4)
    mmsnn.calibrate(snn, [torch.randn(1, 3, 16, 16)], 'none', progress=False)
    other = mmsnn.convert(ann, 4)
    with pytest.raises(RuntimeError, match='cannot be read .*calibrate the ANN again'):
        other.load_state_dict(edited(snn, edit))
    assert other.settings is None
    assert read_settings(snn.state_dict()['_settings'])[0] == snn.settings


# --- what else OpenMMLab can do to a model -----------------------------------------------------------------------


def test_time_augmentation_asks_for_a_calibrated_checkpoint():
    cfg = Config(dict(test_dataloader=dict(dataset=dict(pipeline=[
        dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=[])]))))
    with pytest.raises(ValueError, match='calibrate first, without --tta'):
        transforms_of_the_test(cfg)


@pytest.mark.parametrize('pipeline', ['none', 'light', 'signed'])
def test_mixed_precision_changes_nothing(pipeline):
    """Not even the last bit: inside a spiking network it is off."""
    ann, x = randomise_norms(Residual()).eval(), torch.randn(2, 3, 16, 16)
    expected = mmsnn.convert(ann, 8)
    mmsnn.calibrate(expected, [x], pipeline, progress=False)
    with torch.autocast('cpu', torch.bfloat16):
        assert ann(x).dtype == torch.bfloat16
        snn = mmsnn.convert(ann, 8)
        mmsnn.calibrate(snn, [x], pipeline, progress=False)
        output, quantised = snn(x), snn.quantised(x)
    assert torch.equal(output, expected(x)) and torch.equal(quantised, expected.quantised(x))


def test_deformable_convolutions_may_stay_analog():
    pytest.importorskip('mmcv.ops')
    from mmdet.utils import register_all_modules as register_detection
    register_detection()
    backbone = dict(type='mmdet.ResNet', depth=50, base_channels=8, stem_channels=8,
                    dcn=dict(type='DCNv2', deform_groups=1), stage_with_dcn=(False, False, False, True))
    part = MODELS.build(dict(type='mmsnn.SpikingBackbone', time_steps=64, backbone=backbone,
                             exclude=['layer4.*.conv2']))
    randomise_norms(part.ann)
    part.convert()
    x = torch.randn(1, 3, 64, 64)
    part.calibrate([x], 'signed', progress=False)
    with torch.no_grad():
        output, expected = part(x)[-1], part.snn.network(x)[-1]
    assert (output - expected).norm() < .2 * expected.norm()
