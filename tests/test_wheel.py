"""A wheel of this repository is all that another environment needs: ``custom_imports=['mmsnn']`` works from it."""
import subprocess
import sys
import sysconfig
import textwrap
import zipfile
from pathlib import Path

import pytest

pytest.importorskip('mmdet')

ROOT = Path(__file__).parent.parent

CONFIG = """
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['mmsnn'])
model = dict(backbone=dict(_delete_=True, type='mmsnn.SpikingBackbone', time_steps=2, backbone=dict(
    type='mmdet.ResNet', depth=18)), neck=dict(in_channels=[64, 128, 256, 512]))
"""
SCRIPT = """
import sys
import torch
from mmdet.apis import init_detector
detector = init_detector(sys.argv[1], device='cpu')
import mmsnn
detector.backbone.convert()
detector.backbone.calibrate([torch.randn(1, 3, 64, 64)], 'light', progress=False)
print(mmsnn.__file__, [tuple(level.shape) for level in detector.extract_feat(torch.randn(1, 3, 64, 64))][0])
"""


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation',
                    '--wheel-dir', folder, ROOT], check=True)
    (file,) = folder.glob('mmsnn-*.whl')
    return file


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    modules = {f'mmsnn/{path.name}' for path in (ROOT / 'mmsnn').glob('*.py')}
    assert {name for name in names if '.dist-info/' not in name} == modules


def test_wheel_works_in_another_environment(wheel, tmp_path):
    # A new environment, which finds the installed packages of this one, but not its mmsnn: that is installed editable.
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path / 'env'], check=True)
    python, site = tmp_path / 'env' / 'bin' / 'python', next((tmp_path / 'env').glob('lib/python3*/site-packages'))
    (site / 'others.pth').write_text(sysconfig.get_paths()['purelib'])
    without = subprocess.run([python, '-c', 'import mmsnn'], cwd=tmp_path, capture_output=True, text=True)
    assert 'ModuleNotFoundError' in without.stderr
    subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', site, wheel],
                   check=True)
    (tmp_path / 'config.py').write_text(CONFIG)
    result = subprocess.run([python, '-c', textwrap.dedent(SCRIPT), tmp_path / 'config.py'], cwd=tmp_path,
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-5:] == [str(site / 'mmsnn' / '__init__.py'), '(1,', '256,', '8,', '8)']
