"""A wheel of this repository is all that another environment needs: command, configs, ``custom_imports=['mmsnn']``."""
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import pytest

pytest.importorskip('mmdet')

from mmengine.config import Config
from mmengine.fileio import load

sys.path.insert(0, str(Path(__file__).parent))

from test_tools import CHECKPOINT, ROOT, STEM, digits, scores  # noqa: F401

SPIKING = """
_base_ = 'my_detector.py'

custom_imports = dict(imports=['mmsnn'])
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsnn.SpikingBackbone',
        time_steps=8,
        backbone=_base_.model.backbone))
custom_hooks = [dict(type='mmsnn.CalibrationHook', num_images=4)]
"""
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'} | dict(OMP_NUM_THREADS='1')
SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
OF_A_CLONE = {'setup_env.sh', 'demo.py', 'figures.py', 'recompute.py', '_changes.py', '_docstrings.py', '_home.py',
              '_readme.py', '_site.py', '_tables.py', '_tables_classifier_rows.py', '_tables_classifiers.py',
              '_tables_detector_rows.py', '_tables_detectors.py', '_tables_levels.py', '_tables_paper.py'}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob('*')
            if path.is_file() and not {'__pycache__', '.mim'} & set(path.parts)}


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """Built from a source distribution of a clean copy: nothing that lies about in the clone gets in, or is needed."""
    folder = tmp_path_factory.mktemp('wheel')
    clone = folder / 'clone'
    for name in ('mmsnn', 'configs', 'tools'):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns('__pycache__', '.mim'))
    for name in ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'model-index.yml'):
        shutil.copy(ROOT / name, clone)
    subprocess.run([sys.executable, '-c', SDIST, folder], cwd=clone, check=True, stdout=subprocess.DEVNULL)
    (archive,) = folder.glob('mmsnn-*.tar.gz')
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation',
                    '--wheel-dir', folder, archive], check=True)
    (file,) = folder.glob('mmsnn-*.whl')
    return file


@pytest.fixture(scope='module')
def environment(wheel, tmp_path_factory):
    """A new environment, which finds the installed packages of this one, but has no mmsnn except from the wheel."""
    folder = tmp_path_factory.mktemp('environment')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder], check=True)
    (site,) = folder.glob('lib/python3*/site-packages')
    (site / 'others.pth').write_text(sysconfig.get_paths()['purelib'])
    without = run(folder / 'bin' / 'python', '-c', 'import mmsnn', cwd=folder, check=False)
    assert 'ModuleNotFoundError' in without
    subprocess.run([sys.executable, '-m', 'pip', '--python', folder / 'bin' / 'python', 'install', '--quiet',
                    '--no-deps', '--force-reinstall', wheel], check=True)
    return folder


@pytest.fixture(scope='module')
def user(digits, tmp_path_factory):  # noqa: F811
    """A folder with a detector of the user's own, and the config that derives its spiking counterpart."""
    folder = tmp_path_factory.mktemp('user')
    cfg = Config.fromfile(ROOT / 'configs' / 'digits' / f'{STEM}_digits.py')
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f'{digits}/'
        loader.update(num_workers=0, persistent_workers=False)
    cfg.test_evaluator.ann_file = f'{digits}/test.json'
    cfg.dump(folder / 'my_detector.py')
    (folder / 'my_detector_spiking.py').write_text(SPIKING)
    shutil.copy(CHECKPOINT, folder / 'my_detector.pth')
    return folder


def run(*command, cwd, check=True):
    result = subprocess.run(list(map(str, command)), cwd=cwd, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)
    assert not check or result.returncode == 0, result.stdout[-3000:]
    return result.stdout


def test_wheel_holds_the_package_and_what_openmmlab_looks_for(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in name}
    package = {f'mmsnn/{name}' for name in files(ROOT / 'mmsnn')}
    assert {'mmsnn/py.typed', 'mmsnn/experiments/report.html.j2', 'mmsnn/cli.py'} <= package
    configs = {f'mmsnn/.mim/configs/{name}' for name in files(ROOT / 'configs')}
    tools = {f'mmsnn/.mim/tools/{name}' for name in files(ROOT / 'tools') - OF_A_CLONE}
    assert names == package | configs | tools | {'mmsnn/.mim/model-index.yml'}


def test_index_names_the_committed_checkpoints_and_their_scores():
    models = {}
    for path in load(ROOT / 'model-index.yml')['Import']:
        models.update({model['Weights']: model for model in load(ROOT / path)['Models']})
    assert set(models) == {f'checkpoints/{path.name}' for path in (ROOT / 'checkpoints').glob('*.pth')}
    results = (ROOT / 'docs' / 'results.md').read_text()
    for weights, model in models.items():
        assert Path(model['Config']).stem == Path(weights).stem == model['Name'] and (ROOT / model['Config']).is_file()
        (result,) = model['Results']
        if result['Task'] == 'Image Classification':
            page = (ROOT / 'docs' / 'paper_networks.md').read_text()
            row = next(line for line in page.splitlines() if f'`{model["Config"]}`' in line)
            assert f'| {result["Metrics"]["Top 1 Accuracy"]} |' in row
            continue
        table, name = results.split('## Blood cells')['bccd' in weights], model['Metadata']
        score = f'{result["Metrics"]["box AP"] / 100:.3f}'
        rows = [line for line in table.splitlines()
                if line.replace('**', '').startswith(f'| {name["Architecture"]} | ANN |')]
        if rows:
            assert f'| {score} |' in rows[0]
        else:  # measured as a whole only
            assert f'| {name["Architecture"]} | ANN | | {score} |' in (ROOT / 'docs' / 'detectors.md').read_text()


def test_commands_work_on_a_config_of_the_users_own(environment, user):
    command, module = environment / 'bin' / 'mmsnn', [environment / 'bin' / 'python', '-m', 'mmsnn']
    in_test = run(command, 'test', 'my_detector_spiking.py', 'my_detector.pth', cwd=user)
    assert 'calibrating backbone' in in_test and float(scores(in_test)[0].split()[0]) > .3
    run(*module, 'calibrate', 'my_detector_spiking.py', 'my_detector.pth', '-o', 'spiking.pth', cwd=user)
    from_file = run(*module, 'test', 'my_detector_spiking.py', 'spiking.pth', cwd=user)
    assert 'using the calibration of the checkpoint' in from_file and scores(from_file) == scores(in_test)


FIND = """
import json
import mmsnn
from mmengine.hub import get_config
found = {}
for stem in ('digits/retinanet_r50-thin_fpn_digits', 'digits/retinanet_r50-thin_fpn_snn-light_digits'):
    cfg = get_config(f'mmsnn::{stem}.py', pretrained='snn' not in stem)
    found[stem] = dict(type=cfg.model.type, backbone=cfg.model.backbone.type, weights=cfg.get('model_path'))
print(json.dumps(dict(file=mmsnn.__file__, found=found)))
"""


def test_mmengine_finds_configs_and_weights(environment, tmp_path):
    output = run(environment / 'bin' / 'python', '-W', 'ignore', '-c', FIND, cwd=tmp_path)
    answer = json.loads(output.splitlines()[-1])
    assert Path(answer['file']).is_relative_to(environment)
    ann, snn = answer['found'].values()
    assert ann == dict(type='RetinaNet', backbone='ResNet', weights=f'checkpoints/{STEM}_digits.pth')
    assert snn == dict(type='RetinaNet', backbone='mmsnn.SpikingBackbone', weights=None)


def test_tools_for_mim_are_the_command(environment, tmp_path):
    (tool,) = environment.glob('lib/python3*/site-packages/mmsnn/.mim/tools/calibrate.py')
    output = run(environment / 'bin' / 'python', tool, 'nowhere.py', 'nowhere.pth', '-o', 'x.pth', cwd=tmp_path,
                 check=False)
    assert output.splitlines()[-1] == f"checkpoint 'nowhere.pth' does not exist (looked in {tmp_path})"


@pytest.mark.parametrize('arguments', [['--help'], ['sweep', '--help'], ['calibrate']], ids=' '.join)
def test_arguments_are_read_before_torch_is_loaded(environment, tmp_path, arguments):
    code = ("import sys; sys.argv[0] = 'mmsnn'\nfrom mmsnn.cli import main\ntry:\n    main()\nfinally:\n"
            "    assert 'torch' not in sys.modules and 'mmengine' not in sys.modules")
    started = time.monotonic()
    output = run(environment / 'bin' / 'python', '-c', code, *arguments, cwd=tmp_path, check=False)
    assert 'AssertionError' not in output and 'mmsnn' in output
    assert time.monotonic() - started < 5  # a second on a machine that does nothing else
