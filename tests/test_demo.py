"""The tutorial runs from top to bottom, and the script beside it draws."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('sklearn')

ROOT = Path(__file__).resolve().parent.parent


def test_tutorial():
    nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
    pytest.importorskip('ipykernel')
    notebook = nbformat.read(ROOT / 'demo' / 'tutorial.ipynb', as_version=4)
    nbclient.NotebookClient(notebook, timeout=900, resources=dict(metadata=dict(path=str(ROOT)))).execute()
    texts = [output['data']['text/plain'] for cell in notebook.cells for output in cell.get('outputs', ())
             if output['output_type'] == 'execute_result']
    agreement = next(ast.literal_eval(text) for text in texts if 'agreement' in text)['agreement/bbox_mAP']
    assert .8 < agreement < 1


def test_compare_draws_the_ann_and_the_spiking_network(tmp_path):
    sys.path.insert(0, str(ROOT / 'tools'))
    from make_digits import make_digits
    make_digits(ROOT / 'data' / 'digits')
    out = tmp_path / 'compare.png'
    run = subprocess.run(
        [sys.executable, 'demo/compare.py', 'data/digits/test/00003.png',
         'configs/digits/retinanet_r50-thin_fpn_snn-light_digits.py', 'checkpoints/retinanet_r50-thin_fpn_digits.pth',
         '--out', str(out), '--cfg-options', 'model.backbone.time_steps=4', 'custom_hooks.0.num_images=2',
         f'work_dir={tmp_path}'], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    assert 'SNN, T = 4: ' in run.stdout + run.stderr
    import mmcv
    height, width = mmcv.imread(str(out)).shape[:2]
    assert width > 1.5 * height  # two pictures beside each other
