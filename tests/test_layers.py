"""The package is built in floors: a folder imports only from those below it, and the core knows no OpenMMLab."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / 'mmsnn'
FLOORS = [  # lowest first; what stands in one line does not import from each other
    {'version', 'machine', 'mistakes', 'progress', 'distributed', 'moved'}, {'files'},
    {'neurons'}, {'simulation'}, {'conversion'}, {'calibration'}, {'analysis'}, {'export'}, {'openmmlab'},
    {'api', '__init__'},  # what `import mmsnn` offers
    {'experiments'}, {'commands'}, {'cli'}, {'__main__'}]
HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor}
OUTSIDE = {'mmengine', 'mmcv', 'mmdet', 'mmpretrain'}
MAY_KNOW_OPENMMLAB = {'openmmlab', 'experiments', 'commands'}
FILES = sorted(path for path in PACKAGE.rglob('*.py') if '.mim' not in path.parts)


def room(path: Path) -> str:
    """The folder of the package that a file is in, or the file where it is in none."""
    return path.relative_to(PACKAGE).with_suffix('').parts[0]


def imported(path: Path) -> set[str]:
    """Dotted names of all modules, or of names in them, that a file imports, inside functions too."""
    package = ('mmsnn', *path.relative_to(PACKAGE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = '.'.join(package[:len(package) - node.level + 1]) if node.level else ''
            module = '.'.join(filter(None, (start, node.module)))
            found |= {f'{module}.{alias.name}' for alias in node.names}
    return found


def rooms_of(names: set[str]) -> set[str]:
    """The rooms of the package that some names are in; what the package itself offers is in ``__init__``."""
    parts = [name.split('.') for name in names if name.split('.')[0] == 'mmsnn']
    return {part[1] if len(part) > 1 and part[1] in HEIGHT else '__init__' for part in parts}


def test_every_room_has_its_floor():
    assert {room(path) for path in FILES} == set(HEIGHT)


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    """So that there is no cycle between rooms either."""
    own = room(path)
    upward = {other for other in rooms_of(imported(path)) - {own} if HEIGHT[other] >= HEIGHT[own]}
    if own == '__init__':
        upward -= {'api'}
    assert not upward, f'{own} must not import {upward}'
    if own not in MAY_KNOW_OPENMMLAB:
        assert not OUTSIDE & {name.split('.')[0] for name in imported(path)}


def test_the_rule_sees_imports_of_every_kind(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), 'PACKAGE', tmp_path)
    path = tmp_path / 'neurons' / 'new.py'
    path.parent.mkdir()
    path.write_text('import mmsnn\nfrom . import rates\nfrom ..version import x\n'
                    'def f():\n    from mmsnn.experiments.runs import Worker\n    from .. import api\n'
                    '    import mmdet.apis\n')
    assert imported(path) == {'mmsnn', 'mmsnn.neurons.rates', 'mmsnn.version.x', 'mmsnn.experiments.runs.Worker',
                              'mmsnn.api', 'mmdet.apis'}
    assert rooms_of(imported(path)) == {'__init__', 'neurons', 'version', 'experiments', 'api'}


def test_files_are_short():
    long = {str(path.relative_to(ROOT)): lines for path in FILES
            if (lines := len(path.read_text().splitlines())) > 300}
    long |= {f'tools/{path.name}': lines for path in (ROOT / 'tools').glob('*.py')
             if (lines := len(path.read_text().splitlines())) > 100 and path.name != 'make_digits.py'}
    assert not long
