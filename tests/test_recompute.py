"""tools/recompute.py reads pages and results alike, names the rows that differ, and a sample of it runs."""
import argparse
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('sklearn')

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'tools'))

import _tables_classifiers as classifiers
import _tables_detectors as detectors
from _tables import LEFT_OUT, TABLES
from _tables_classifier_rows import DELAYED, INGREDIENTS, exported, layer_by_layer, of_a_classifier
from _tables_detector_rows import narrowing, whole
from make_digits import make_digits

from mmsnn.commands import report, sweep
from mmsnn.experiments import recompute
from mmsnn.experiments.demo import METHODS, TABLE_4, Demo
from mmsnn.experiments.readers import across, by_levels, markdown, printed, stored, swept, transposed, with_ceiling
from mmsnn.experiments.recompute import Table, cells_of, differences, is_table, markdown_tables, page_cells
from mmsnn.experiments.sweep import check_pipelines

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
    assert whole({**row, 'graded_operations': 1e6})[name, 'operations, millions'] == '476', 'of norms'
    assert cells[name, 'backbone, neck, heads'] == '0.200, 0.100, 0.150'
    assert cells['RetinaNet, ANN', 'backbone, neck, heads'] == '0.500, 0.100, 0.400'


def test_readers_of_sweeps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, steps, scores in (('a-2', 2, ('90.1 ± 0.2', '80.0')), ('a-4', 4, ('91.0', '85.5'))):
        tables = [f'| {head} | levels a step | T = {steps} |\n|---|---|---|\n| bursts | 13 | {one} |\n'
                  f'| light | 2 | {other} |\n' for head, one, other in (
                      ('accuracy/top1 (ANN: 91.73)', *scores), ('ceiling: quantised', '92', '93'),
                      ('synaptic operations per image by size, millions', '70.5', '9.1'),
                      ('the same by events: one each', '30.5', '9.1'))]
        path = tmp_path / 'work_dirs' / 'sweep' / folder / 'table.md'
        path.parent.mkdir(parents=True)
        path.write_text('\n'.join(tables))
    assert swept('a-2', rows={'own': 'light'})(tmp_path) == {('own', 'T = 2'): '80.0'}
    cells = by_levels('a-2', 'a-4')(tmp_path)
    assert len(cells) == 12 and cells['13, `bursts`, 2', 'top-1, %'] == '90.1 ± 0.2'
    assert cells['2, `light`, 4', 'by size, M'] == '9.1'
    assert cells['13, `bursts`, 4', 'operations by events, M'] == '30.5'
    assert across({'noise': 'a-2', 'images': 'a-4'})(tmp_path) == {
        ('noise', '`bursts`'): '90.1 ± 0.2', ('noise', '`light`'): '80.0', ('images', '`bursts`'): '91.0',
        ('images', '`light`'): '85.5'}
    row = {'pipeline': 'light', 'time_steps': 4, 'x': 80.456, 'x (ceiling)': 81., 'synaptic_operations': 2.5e6}
    path.with_name('rows.json').write_text(json.dumps(dict(rows=[dict(pipeline='ann', time_steps=None), row])))
    assert with_ceiling('a-4', {'light': 'plain'}, 'x', 2)(tmp_path) == {
        ('plain', 'T = 4'): '80.46', ('plain', 'ceiling (T = 4)'): '81.00', ('plain', 'Mops (T = 4)'): '2.5'}
    assert ('plain', 'ceiling (cells)') in with_ceiling('a-4', {'light': 'plain'}, 'x', 2, 'cells')(tmp_path)


def test_readers_of_reports(tmp_path):
    layers = [dict(firing_rate=.01 * number, after=dict(median=.1 * number)) for number in range(16)]
    row = {'pipeline': 'light', 'time_steps': 4, 'accuracy/top1': 85., 'agreement/top1': 86.2,
           'spike/energy_ratio': .125, 'spike/firing_rate': .12, 'layers': layers}
    later = {**row, 'time_steps': 16, 'accuracy/top1': 90.5}
    path = tmp_path / 'report.json'
    path.write_text(json.dumps(dict(rows=[dict(pipeline='ann', time_steps=None), later, row])))
    cells = of_a_classifier(str(path), {'light': 'LCP'})(tmp_path)
    assert cells['LCP', 'top-1 at T = 4, 8, 16'] == '85.0, 90.5' and len(cells) == 3
    cells = layer_by_layer(row)
    assert cells['`light`, 4', 'median relative error, layers 1, 5, 10, 15'] == '0.000, 0.400, 0.900, 1.400'
    assert cells['`light`, 4', 'by layer'] == '0.000 to 0.150'
    row = {'pipeline': 'differential:narrowing=3', 'time_steps': 3, 'coco/bbox_mAP': .8154,
           'spike/event_energy_ratio': .292}
    assert narrowing('YOLOX')(row) == {('YOLOX, 3', '`narrowing=3`'): '0.815 (0.292)'}


def test_reader_of_exports(tmp_path):
    for number, values in enumerate(('0, largest 0; 100', '0.017, largest 1.9; 96')):
        (tmp_path / f'{number}.log').write_text(f'the file: mean difference {values} of 100 images within 1e-4, same '
                                                'class for 100\n')
    with open(tmp_path / '1.log', 'a') as log:
        log.write('mmsnn in float64: mean difference 2e-05, largest 1; 97 of 100 images within 1e-4, same class '
                  'for 99\n')
    cells = exported('`light`, NIR', '`light`, ONNX')(tmp_path)
    assert cells['`light`, NIR', 'same class'] == '100' and cells['`light`, ONNX', 'images within 1e-4'] == '96'
    own = '`light`, mmsnn in float64 against itself in float32'
    assert {row for row, _ in cells} == {'`light`, NIR', '`light`, ONNX', own} and cells[own, 'largest'] == '1'


def on_page(page, head):
    table = next(table for table in TABLES if table.page == f'docs/{page}.md' and table.head.startswith(head))
    return page_cells(table, ROOT)


@pytest.mark.parametrize('page, head, names', [
    ('signed', ' | T = 2', [*INGREDIENTS.values(), *DELAYED.values()]),
    ('signed', ' | digits', detectors.ON_VALIDATION.values()), ('signed', '16 calib', detectors.SYNTHETIC),
    ('signed', '128 calib', classifiers.SYNTHETIC), ('report', 'pipeline | top-1', classifiers.REPORTED.values()),
    ('export', 'file', ['`light`, NIR, float64 on both sides', '`signed`, mmsnn in float64 against itself in float32']),
    ('classification', 'top-1, % (ANN: 91.70) | T = 4', classifiers.METHODS)])
def test_rows_are_named_as_on_the_page(page, head, names):
    assert set(names) <= {row for row, _ in on_page(page, head)}


def test_columns_that_come_twice():
    columns = {column for _, column in on_page('signed', ' | T = 2')}
    assert columns == {'T = 2', 'ceiling (T = 2)', 'Mops (T = 2)', 'T = 4', 'ceiling (T = 4)', 'Mops (T = 4)'}


@pytest.mark.parametrize('table', TABLES, ids=lambda table: table.name)
def test_every_table_is_on_its_page(table):
    assert len(page_cells(table, ROOT)) > 1 and table.commands
    for command in table.commands:
        assert command.startswith('python -c') or (ROOT / command.split()[1]).is_file(), command


COMMANDS = sorted({command for table in TABLES for command in table.commands})


@pytest.mark.parametrize('command', [
    command for command in COMMANDS if command.startswith(('python tools/sweep', 'python tools/report'))])
def test_sweeps_and_reports_can_begin(command):
    """Arguments, pipelines with their options, and configs are such as the tool takes."""
    parser, words = argparse.ArgumentParser(), shlex.split(command)
    (sweep if 'sweep.py' in words[1] else report).add_arguments(parser)
    args = parser.parse_args(words[2:])
    check_pipelines(args.pipelines)
    assert (ROOT / args.config).is_file() and None not in args.cfg_options.values()


@pytest.mark.parametrize('command', [command for command in COMMANDS if 'tools/demo.py' in command])
def test_the_demo_has_its_configs(command):
    def after(option, default):
        return re.search(rf'{option} ((?:[^-]\S* ?)+)', command)[1].split() if option in command else default

    demo = Demo(ROOT, *after('--data', ['digits']), ROOT)
    for detector in after('--detectors', []) or TABLE_4:
        for pipeline in ['ann', *after('--pipelines', METHODS)]:
            assert demo.config(detector, pipeline).is_file(), (detector, pipeline)


def test_no_table_with_numbers_is_forgotten():
    """Each has a command, or a reason why not, never both; and each reason has its table."""
    reasons = {place: reason for reason, places in LEFT_OUT.items() for place in places}
    assert len({table.name for table in TABLES}) == len(TABLES), 'results are kept under the name'
    used = set()
    for path in (ROOT / 'README.md', *(ROOT / 'docs').glob('*.md')):
        page = str(path.relative_to(ROOT))
        for heading, rows in markdown_tables(path.read_text()):
            computed = [table for table in TABLES if table.page == page
                        and is_table(heading, rows, table.head, table.under)]
            left = {(own, head) for own, head in reasons if own == page and is_table(heading, rows, head)}
            name = f'{page}, {heading}: | {" | ".join(rows[0])}'
            assert not (computed and left), name
            if any(re.match(r'(≈ )?[\d,.]*\d\b', cell) for row in rows[1:] for cell in row[1:]):
                assert computed or left, f'{name}: tools/_tables.py needs its command, or the reason why there is none'
            used |= left
    assert used == set(reasons)


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
