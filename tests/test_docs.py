"""The documentation builds without a warning, and the programs in it run."""
import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import mmsnn
from mmsnn.experiments.recompute import cells_of, markdown_tables
from mmsnn.neurons.model import NEURONS
from mmsnn.neurons.thresholds import RULES

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / 'docs'


def programs(page: str) -> list[str]:
    """The blocks of a page that a comment before them says the tests run."""
    blocks = re.findall(r'<!-- tests/test_docs.py runs this block. -->\s*```python\n(.*?)```',
                        (DOCS / page).read_text(), re.DOTALL)
    assert blocks, f'{page} has no block for the tests'
    return blocks


def test_site_builds_without_a_warning(tmp_path):
    for package in ('mkdocs', 'material', 'mkdocstrings_handlers.python'):
        pytest.importorskip(package)
    run = subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(tmp_path / 'site')],
                         cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    pages = {path.stem for path in DOCS.glob('*.md')}
    assert pages <= {path.stem for path in (tmp_path / 'site').glob('*.html')}
    api = (tmp_path / 'site' / 'api.html').read_text()
    missing = [name for name in mmsnn.__all__ if name != '__version__' and f'id="mmsnn.{name}"' not in api]
    assert not missing, f'docs/api.md names all of mmsnn but {missing}'
    for page in (tmp_path / 'site').glob('*.html'):
        foreign = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?://[^"]*)"', page.read_text())
        assert not [address for address in foreign if 'rel="canonical"' not in address], f'{page.name} loads {foreign}'
    assert (tmp_path / 'site' / 'javascripts' / 'iframe-worker.js').is_file(), 'search from disk needs it'
    left = re.findall(r':(?:class|func|data|meth|mod|attr):|\w::<', api)
    assert not left, f'reStructuredText in the Python API: {left}'


def test_docstrings_as_markdown(monkeypatch):
    pytest.importorskip('griffe')
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    from _docstrings import to_markdown
    assert to_markdown('Counts::\n\nwith a:\n    b', 'm') == 'Counts:\n\n    with a:\n        b'
    assert to_markdown('Is::\n\n    x = 1\n\nSee.', 'm') == 'Is:\n\n    x = 1\n\nSee.'
    assert to_markdown('Does.\n\nReturns:\n    One: two.\n    Three.\n\nRaises:\n    ValueError: no.', 'm') == (
        'Does.\n\n**Returns:**\n\nOne: two.\nThree.\n\nRaises:\n    ValueError: no.')
    assert to_markdown('of :class:`Cost`, :func:`mmsnn.convert`', 'mmsnn.analysis.cost') == (
        'of <autoref identifier="mmsnn.analysis.cost.Cost" optional><code>Cost</code></autoref>, '
        '<autoref identifier="mmsnn.convert" optional><code>mmsnn.convert</code></autoref>')


def readme() -> str:
    return (ROOT / 'README.md').read_text()


def test_links_of_the_readme_lead_somewhere():
    targets = re.findall(r'\]\((?!https?:|#)([^)#]+)', readme())
    assert len(targets) > 40
    lost = [target for target in targets if not (ROOT / target).exists()]
    assert not lost, lost


def test_readme_on_a_package_index(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    from _readme import for_index, repository
    text = for_index(readme(), 'https://example.org/a/mmsnn')
    assert '](https://example.org/a/mmsnn/raw/HEAD/docs/images/whole_detector.png)' in text
    assert not re.findall(r'\]\((?!https?:|#)', text) and text.count('\n') == readme().count('\n')
    without = for_index('![picture](a.png) of [a page](b.md#c), [site](https://x.org), [here](#c)', '')
    assert without == ' of a page, [site](https://x.org), [here](#c)'
    monkeypatch.setenv('MMSNN_URL', 'git@example.org:a/mmsnn.git')
    assert repository() == 'https://example.org/a/mmsnn'
    monkeypatch.delenv('MMSNN_URL')
    assert repository(tmp_path) == ''


def test_citation_is_that_of_the_file():
    cff = (ROOT / 'CITATION.cff').read_text().partition('preferred-citation:')[2]
    title, year = (re.search(rf'{key}: (.*)', cff)[1] for key in ('title', 'year'))
    authors = ' and '.join(f'{family}, {given}' for family, given in re.findall(
        r'family-names: (\w+), given-names: (\w+)', cff))
    entry = readme().partition('```bibtex')[2].partition('```')[0]
    assert f'{{{title}}}' in entry and f'{{{year}}}' in entry and f'{{{authors}}}' in entry


def test_first_table_says_what_the_others_say():
    """Rows of the README's first table stand in docs/detectors.md or in its own Table 4."""
    tables = [rows for _, rows in markdown_tables(readme())]
    first = next(rows for rows in tables if rows[0][0] == 'detector')
    whole = cells_of(next(rows for _, rows in markdown_tables((DOCS / 'detectors.md').read_text())
                          if rows[0][:3] == ['detector', '', 'T']))
    backbone = cells_of(next(rows for rows in tables if rows[0][0] == 'Detector'))
    assert len(first) == 6
    pipeline = ''
    for name, what, steps, kept, energy in first[1:]:
        pipeline = re.search(r'`(\w+)`', what)[1] if '`' in what else pipeline
        if pipeline == 'differential':
            row = f'{name.partition(",")[0]}, SNN, {steps}'
            said = whole[row, "of the ANN's"], whole[row, 'energy']
        else:
            (row,) = [row for row, column in backbone if column == 'mAP' and row.startswith(f'**{name}**')
                      and row.endswith(f'(`{pipeline}`), {steps}')]
            said = backbone[row, "of the ANN's"], backbone[row, 'energy by events']
        assert (said[0].replace(' ', ''), said[1]) == (kept.replace(' ', ''), energy), row


def test_scores_that_stand_on_several_pages_are_the_same():
    """Those of the model zoo, and the results on CIFAR-10."""
    def cells(page, head):
        return cells_of(next(rows for _, rows in markdown_tables((ROOT / page).read_text())
                             if ' | '.join(rows[0]).startswith(head)))

    digits, bccd, networks = (cells(page, head) for page, head in (
        ('docs/detectors.md', 'detector |  | T'), ('docs/detectors.md', 'blood cells |'),
        ('docs/paper_networks.md', 'network |')))
    zoo = next(rows for _, rows in markdown_tables(readme()) if rows[0][0] == 'ANN')
    for name, data, score, *_ in zoo[1:]:
        detector = re.search(r'RetinaNet|Faster R-CNN|ResNet-20', name)[0]
        if detector == 'ResNet-20':
            own = networks['ResNet-20 (4x), `configs/resnet_cifar/resnet20-4x_cifar10.py`', 'top-1, 10,000 test images']
        else:
            own = (bccd if 'blood' in data else digits)[f'{detector}, ANN', 'mAP']
        assert score.split()[0] == own, name
    results = cells('docs/results.md', 'method (ANN')
    by_method, signed = cells('docs/classification.md', 'method (ANN'), cells('docs/signed.md', 'T | top-1')
    for (row, column), said in results.items():
        if column != 'levels a step' and said != '–':
            own = (signed[column.removeprefix('T = '), 'top-1, %'] if row.startswith('`signed`')
                   else by_method[row, column])
            assert said == own, (row, column)


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r'[\w/]+\.md', re.sub('#.*', '', (ROOT / 'mkdocs.yml').read_text())))
    assert listed == {path.name for path in DOCS.glob('*.md')}


def test_quick_start_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for program in programs('quick_start.md'):
        exec(compile(program, 'quick_start.md', 'exec'), scope)
    assert scope['y'].shape == (2, 10) and 'error after' in capsys.readouterr().out
    again = mmsnn.convert(scope['ann'], time_steps=8)
    again.load_state_dict(torch.load('snn.pth', weights_only=True))
    assert (again(scope['x']) == scope['y']).all()


def test_extending_adds_a_rule_a_pipeline_and_a_kind_of_neuron():
    before = [(own, dict(own)) for own in (RULES, mmsnn.PIPELINES, NEURONS)]
    try:
        for program in programs('extending.md'):
            exec(compile(program, 'extending.md', 'exec'), {})
        snn = mmsnn.convert(nn.Sequential(nn.Identity(), nn.ReLU()), time_steps=4)
        neuron, = snn.neurons.values()
        values = torch.cat([torch.full((99, 1), 1.), torch.full((1, 1), 21.), torch.zeros(50, 1)])
        mmsnn.calibrate(snn, [values], 'none', threshold='three-sigma', progress=False)
        # Of the hundred that are not zero: mean 1.2, mean square (99 + 441) / 100 = 5.4, variance 5.4 - 1.44.
        assert neuron.threshold.item() == pytest.approx(1.2 + 3 * 3.96 ** .5, rel=.01)
        mmsnn.calibrate(snn, [values], 'careful', progress=False)
        assert neuron.rule.signed and neuron.rule.max_spikes == 1 and snn.settings['rounds'] == 2
        mmsnn.calibrate(snn, [values], 'none', neuron='double', progress=False)
        threshold = neuron.threshold.item()
        # Two spikes at a time in four steps: the mean is a multiple of half the threshold, at most twice it.
        rates = snn(threshold * torch.tensor([.2, .8, 1.3, 9.])[:, None])[:, 0] / threshold
        torch.testing.assert_close(rates, torch.tensor([0., 1., 1.5, 2.]))
    finally:
        for own, entries in before:
            own.clear()
            own.update(entries)


def messages() -> str:
    """All texts in the sources, with ``...`` in the place of values."""
    texts = []
    for path in [*(ROOT / 'mmsnn').rglob('*.py'), *(ROOT / 'tools').glob('*.py')]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append(''.join(part.value if isinstance(part, ast.Constant) else '...' for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value.replace('%r', '...'))
    return '\n'.join(texts)


def test_messages_on_the_troubleshooting_page_are_those_of_the_code():
    texts = messages()
    cells = re.findall(r'^\| (`.*?) \|', (DOCS / 'troubleshooting.md').read_text(), re.MULTILINE)
    quoted = [message for cell in cells for message in re.findall(r'`([^`]+)`', cell)]
    assert len(quoted) > 40
    lost = [message for message in quoted for part in message.split('...')
            if part.strip('. :,()') and part.strip('. :,()') not in texts]
    assert not lost, f'docs/troubleshooting.md quotes what no source says: {lost}'


def test_figures_are_drawn_and_show_what_the_page_says(tmp_path, monkeypatch):
    pytest.importorskip('matplotlib')
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    import figures
    assert figures.neuron_figure(tmp_path / 'neuron.png') == (3, 1)  # spikes of the plain neuron, of the signed one
    figures.rate_figure(tmp_path / 'rate.png')
    assert figures.changes_figure(tmp_path / 'changes.png') == [4, 1, 0, 0, -1, 0, 0]
    for name in ('neuron.png', 'rate.png'):
        assert (tmp_path / name).stat().st_size > 10_000 and (DOCS / 'images' / name).is_file()


@pytest.mark.parametrize('rule, message', [('three-sigma', "checkpoint 'none.pth' does not exist"),
                                           ('four-sigma', 'threshold must be one of')])
def test_tools_know_what_a_config_imports(tmp_path, rule, message):
    pytest.importorskip('mmpretrain')
    (tmp_path / 'my_rules.py').write_text(programs('extending.md')[0])
    base = ROOT / 'configs' / 'resnet_cifar' / 'resnet20_snn-light_cifar10.py'
    (tmp_path / 'config.py').write_text(f"_base_ = '{base}'\ncustom_imports = dict(imports=['mmsnn', 'my_rules'])\n")
    run = subprocess.run([sys.executable, str(ROOT / 'tools' / 'sweep.py'), 'config.py', 'none.pth', '--pipelines',
                          f'light:threshold={rule}'], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                         env={**os.environ, 'PYTHONPATH': str(tmp_path)})
    assert run.returncode and message in run.stderr, run.stderr
