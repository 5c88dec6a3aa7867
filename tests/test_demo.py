"""The tutorial runs from top to bottom, the script beside it draws, and the demo shows what it says."""
import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('sklearn')

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'tools'))

from make_digits import make_digits

from mmsnn.experiments.demo import Demo, complete, evaluate, jobs_of, make_page, table, tour
from mmsnn.files import save_json

JOBS = jobs_of(['RetinaNet'], ['signed'], [2])


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
    assert width > 1400 and width > height  # two pictures beside each other


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    """The demo's own configs and checkpoints on a small data set, and the working directory that they need."""
    root = tmp_path_factory.mktemp('root')
    for name in ('configs', 'checkpoints', 'tools'):
        (root / name).symlink_to(ROOT / name)
    make_digits(root / 'data' / 'digits', train=16, val=1, test=4)
    before = Path.cwd()
    os.chdir(root)
    yield Demo(root, 'digits', Path('out'))
    os.chdir(before)


@pytest.fixture(scope='module')
def shown(demo):
    """What the tour printed, to a file."""
    log = demo.root / 'log.txt'
    with open(log, 'w') as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'stdout', file)
        demo.work_dir.mkdir()
        tour(demo, workers=1, detectors=('RetinaNet',), pipelines=('signed',), time_steps=(2,), page_images=2)
    return log.read_bytes().decode()


def test_tour_shows_a_picture_a_table_and_a_page(demo, shown):
    paths = dict(line.split()[:2] for line in shown.splitlines() if line.startswith(('picture ', 'table ', 'page ')))
    import mmcv
    height, width = mmcv.imread(paths['picture']).shape[:2]
    assert width > 1400 and width > height  # two pictures beside each other
    rows = demo.stored()
    assert [(row['pipeline'], row['time_steps']) for row in rows] == [('ann', None), ('signed', 2)]
    assert Path(paths['table']).read_text() == table(rows) + '\n' and table(rows) in shown
    assert (demo.work_dir / 'map.png').is_file()
    ann, snn = rows
    assert ann['bbox_mAP'] > .6 and 0 < snn['bbox_mAP'] <= ann['bbox_mAP'] + .05
    assert set(snn['detections']) == {'ANN', 'SNN, T = 2'} and snn['detections']['ANN'] > 0
    page = Path(paths['page']).read_text()
    report = json.loads(Path(paths['page']).with_name('report.json').read_text())
    assert '<img' in page and [row['pipeline'] for row in report['rows']] == ['ann', 'none', 'signed']
    # The picture and the first score come before the page, each in a line of its own, also in a file.
    assert '\r' not in shown and shown.index('picture: ') < shown.index('the page: ')
    assert 'rows were not begun' not in shown


def test_a_row_is_what_the_test_script_prints(demo, shown, tmp_path):
    row = demo.stored()[1]
    run = subprocess.run(
        [sys.executable, 'tools/test.py', str(demo.config('RetinaNet', 'signed')), str(demo.checkpoint('RetinaNet')),
         '--work-dir', str(tmp_path), '--cfg-options', 'model.backbone.time_steps=2', 'custom_hooks.0.progress=False'],
        capture_output=True, text=True, timeout=300)
    said = run.stdout + run.stderr
    assert f'coco/bbox_mAP: {row["bbox_mAP"]:.4f}' in said, run.stderr[-2000:]
    assert f'mmsnn: coco/bbox_mAP {row["bbox_mAP"]:.3f}; median relative error of a layer 0.' in said
    assert 'T = 2, 9 levels a step' in said and 'calibrate' in said.partition('To keep it: ')[2]
    assert 'OneDL' not in said and 'faster_coco_eval' not in said


def test_finished_rows_are_kept(demo, shown, capfd):
    rows, picture = demo.stored(), demo.work_dir / 'picture.png'
    assert complete(demo, JOBS, 1, {JOBS[1]: picture}) == (rows, 0)
    assert '0 of 2 rows to compute' in capfd.readouterr().out
    picture.unlink()  # what is missing is made again, and nothing else
    again, late = complete(demo, JOBS, 1, {JOBS[1]: picture})
    out = capfd.readouterr().out
    assert '1 of 2 rows to compute' in out and f'picture: {picture}' in out and picture.is_file() and late == 0
    assert again[0] == rows[0] and again[1]['bbox_mAP'] == pytest.approx(rows[1]['bbox_mAP'], abs=.02)


def test_rows_that_would_end_too_late_are_left_out(demo, shown, capfd):
    rows = demo.stored()
    missing = jobs_of(['Faster R-CNN'], ['none'], [4])
    assert complete(demo, JOBS + missing, 1, deadline=0) == (rows, 2) and demo.stored() == rows
    assert 'started' not in capfd.readouterr().out
    assert evaluate(demo, missing[0], deadline=0) is None


def test_a_page_that_fails_says_why(demo, shown, tmp_path):
    elsewhere = Demo(tmp_path, 'digits', tmp_path / 'out')
    (tmp_path / 'tools').symlink_to(ROOT / 'tools')
    with pytest.raises(RuntimeError, match='the page was not made: .*report.py(.|\n)*does not exist'):
        make_page(elsewhere, 'RetinaNet', (2,), 2)


def test_table_by_hand():
    costs = dict(event_operations=2e6, synaptic_operations=3e6, event_energy_ratio=.25, energy_ratio=.5, ann_macs=4e6,
                 other_macs=1e6)
    rows = [dict(detector='RetinaNet', pipeline='ann', time_steps=None, bbox_mAP=.8),
            dict(detector='RetinaNet', pipeline='signed', time_steps=8, bbox_mAP=.6, levels=9, **costs),
            dict(detector='RetinaNet', pipeline='none', time_steps=4, bbox_mAP=.2, levels=2, **costs),
            dict(detector='RetinaNet', pipeline='whole-differential', time_steps=3, bbox_mAP=.8, levels=13, **costs)]
    assert table(rows).splitlines()[2:] == [
        '| **RetinaNet** | ANN | – | 0.800 | 100% | 5 | 5 | 1 | 1 | – | – |',
        '| | Baseline (`none`) | 4 | 0.200 | 25.0% | 2 | 3 | 0.25 | 0.50 | 2 | yes |',
        '| | Signed bursts (`signed`) | 8 | 0.600 | 75.0% | 2 | 3 | 0.25 | 0.50 | 9 | no |',
        '| | `whole-differential` | 3 | 0.800 | 100.0% | 2 | 3 | 0.25 | 0.50 | 13 | no |']


def test_rows_without_costs_are_computed_again(demo, shown):
    """Those that an earlier version has stored."""
    rows = demo.stored()
    assert rows[1]['levels'] == 9 and 0 < rows[1]['event_operations'] <= rows[1]['synaptic_operations']
    try:
        save_json([rows[0], {key: value for key, value in rows[1].items() if key != 'levels'}],
                  demo.work_dir / 'table.json')
        assert demo.stored() == rows[:1]
    finally:
        save_json(rows, demo.work_dir / 'table.json')


def test_the_tool_parses_arguments(demo, shown, tmp_path):
    """On a copy of the finished folder: nothing is computed, the table and the figure are written anew."""
    work_dir = tmp_path / 'work'
    shutil.copytree(demo.work_dir, work_dir)
    (work_dir / 'table.md').unlink()
    run = subprocess.run([sys.executable, 'tools/demo.py', '--detectors', 'RetinaNet', '--pipelines', 'signed',
                          '--time-steps', '2', '--work-dir', str(work_dir)], cwd=ROOT, capture_output=True, text=True,
                         timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    assert '0 of 2 rows to compute' in run.stdout and table(demo.stored()) in run.stdout
    assert (work_dir / 'table.md').read_text() == table(demo.stored()) + '\n'
