"""tools/recompute.py reads pages and results alike, names the rows that differ, and a sample of it runs."""
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('sklearn')

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'tools'))

from _tables import TABLES, whole
from make_digits import make_digits

from mmsnn.experiments import recompute
from mmsnn.experiments.recompute import Table, cells_of, differences, markdown, page_cells, printed, stored, transposed

PAGE = """# Page

| other | T |
|---|---|
| a | 1 |

## Scores

| Method | T | mAP | kept |
|---|---|---|---|
| `light` | 8 | 0.653 (77.9%) | 80 % |
| | 16 | 0.75 | – |
| `signed` | 8 | 1,234 | 97.3 % |
"""


@pytest.fixture
def page(tmp_path):
    (tmp_path / 'page.md').write_text(PAGE)
    return Table('page.md', 'Method', (), markdown(str(tmp_path / 'result.md')), under='Scores')


def test_cells_of_a_page(page, tmp_path):
    cells = page_cells(page, tmp_path)
    assert cells['`light`, 16', 'mAP'] == '0.75' and cells['`signed`, 8', 'kept'] == '97.3 %'
    assert len(cells) == 6, 'rows of one method are told apart by T, and an empty first cell goes on with the last'
    assert cells_of([['Method', 'T', 'mAP'], ['`light`', '8', '0.5']]) == {('`light`, 8', 'mAP'): '0.5'}, 'also alone'
    assert cells_of([['a', 'b', 'c'], ['x', 'y', '1'], ['x', 'z', '2']]) == {('x, y', 'c'): '1', ('x, z', 'c'): '2'}
    with pytest.raises(ValueError, match="page.md has no table that begins with '| Nothing'"):
        page_cells(replace(page, head='Nothing'), tmp_path)


def test_rows_that_differ_are_named(page, tmp_path):
    result = '| Method | T | mAP |\n|---|---|---|\n| `light` | 8 | 0.6534 |\n| `light` | 16 | 0.76 |\n'
    (tmp_path / 'result.md').write_text(result + '| `signed` | 8 | 1234 |\n| `none` | 8 | 0.1 |\n')
    assert differences(page_cells(page, tmp_path), page.cells(tmp_path)) == [
        "row '`light`, 16', mAP: the page has 0.75, computed 0.76",
        "row '`none`, 8', mAP: computed 0.1, and not on the page"]
    (tmp_path / 'result.md').write_text(result.replace('0.76', '0.7549'))
    assert differences(page_cells(page, tmp_path), page.cells(tmp_path)) == [], "as many digits as the page's"
    assert differences({('a', 'b'): '≈ 102'}, {('a', 'b'): '100'}) == [], 'from fewer images'
    assert len(differences({('a', 'b'): '≈ 104'}, {('a', 'b'): '100'})) == 1


def test_readers(tmp_path):
    (tmp_path / 'sweep.md').write_text('| top1 | T = 2 | T = 4 |\n|---|---|---|\n| signed | 84.1 ± 0.5 | 90.2 |\n')
    read = transposed(('top-1, %', markdown(str(tmp_path / 'sweep.md'), 'top1')))
    assert read(tmp_path) == {('2', 'top-1, %'): '84.1 ± 0.5', ('4', 'top-1, %'): '90.2'}
    (tmp_path / '0.log').write_text('Epoch(test) [2/2]  coco/bbox_mAP: 0.1000\n coco/bbox_mAP: 0.8170  spike/x: 2e')
    assert printed(('net', {'mAP': ('coco/bbox_mAP', 1)}))(tmp_path) == {('net', 'mAP'): '0.817'}
    row = dict(detector='RetinaNet', pipeline='whole-differential', time_steps=3, bbox_mAP=.816,
               event_operations=476.2e6, event_energy_ratio=.2213)
    (tmp_path / 'table.json').write_text(json.dumps([row]))
    assert stored(str(tmp_path / 'table.json'), whole)(tmp_path) == {
        ('RetinaNet, SNN, 3', 'mAP'): '0.816', ('RetinaNet, SNN, 3', 'energy'): '0.221',
        ('RetinaNet, SNN, 3', 'operations, millions'): '476'}
    parts, values = ('backbone', 'neck', 'rpn_head', 'roi_head.bbox_head'), dict(
        ann=(.5, .1, .15, .25), event=(.2, .1, .05, .1))
    shares = {f'{part}_{kind}_share': value for kind in values for part, value in zip(parts, values[kind])}
    row.update(pipeline='whole-signed:max_rate=1', graded_operations=55.4e6, shares=shares)
    cells, name = whole(row), 'RetinaNet, SNN, `signed`, `max_rate=1`, 3'
    assert cells[name, 'operations, millions'] == '476, 55'
    assert cells[name, 'backbone, neck, heads'] == '0.200, 0.100, 0.150'
    assert cells['RetinaNet, ANN', 'backbone, neck, heads'] == '0.500, 0.100, 0.400'


@pytest.mark.parametrize('table', TABLES, ids=lambda table: table.name)
def test_every_table_is_on_its_page(table):
    assert len(page_cells(table, ROOT)) > 2 and table.commands
    for command in table.commands:
        assert (ROOT / command.split()[1]).is_file(), command


def test_finished_commands_are_not_repeated(page, tmp_path):
    result = tmp_path / 'result.md'
    result.write_text('| Method | T | mAP |\n|---|---|---|\n| `light` | 8 | 0.653 |\n| `light` | 16 | 0.75 |\n')
    table = replace(page, commands=('echo once >> times', 'test -e allowed'))
    with pytest.raises(RuntimeError, match='test -e allowed failed; .*1.log says why'):
        recompute.recompute(table, tmp_path, tmp_path / 'work', lambda line: None)
    (tmp_path / 'allowed').touch()
    assert recompute.recompute(table, tmp_path, tmp_path / 'work', lambda line: None) == []
    assert (tmp_path / 'times').read_text() == 'once\n'


def test_a_sample_is_as_on_the_page(tmp_path):
    """RetinaNet's mAP on all 120 test scenes, by mmdet's script, is what docs/reproduce.md says."""
    make_digits(ROOT / 'data' / 'digits')
    table = next(table for table in TABLES if table.page == 'docs/reproduce.md')
    sample = replace(table, commands=(table.commands[0].replace('python', sys.executable, 1)
                                      + f' --work-dir {tmp_path / "test"}',),
                     cells=printed(('`retinanet_r50-thin_fpn_digits.pth`', {'test mAP': ('coco/bbox_mAP', 1)})))
    assert recompute.recompute(sample, ROOT, tmp_path / 'work', lambda line: None) == []
    assert sample.cells(tmp_path / 'work') == {('`retinanet_r50-thin_fpn_digits.pth`', 'test mAP'): '0.817'}


def test_the_tool_lists_what_is_missing():
    run = subprocess.run([sys.executable, 'tools/recompute.py', '--list'], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and all(table.name in run.stdout for table in TABLES)
    lacking = [table for table in TABLES if table.missing(ROOT)]
    assert run.stdout.count('not here, needs') == len(lacking)
    run = subprocess.run([sys.executable, 'tools/recompute.py', 'nowhere'], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1 and 'no table has nowhere in its name' in run.stderr
