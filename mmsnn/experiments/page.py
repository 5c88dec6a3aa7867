"""Figures, pictures and the page of a report, from the rows of its runs."""
import base64
import os
import shlex
import statistics
from collections.abc import Callable
from pathlib import Path

from ..files import save_json
from ..neurons.pipelines import make_pipeline
from ..progress import progress_bar
from .environment import versions
from .inspection import SCORE
from .methods import job_pipeline, parse_pipeline, readable, written
from .runs import CEILING, hook_of
from .sweep import summarise

THEMES: dict[str, dict] = dict(
    light={'figure.facecolor': '#ffffff', 'axes.facecolor': '#ffffff', 'savefig.facecolor': '#ffffff'},
    dark={'figure.facecolor': '#181c22', 'axes.facecolor': '#181c22', 'savefig.facecolor': '#181c22',
          'legend.facecolor': '#181c22', 'legend.edgecolor': '#3a424d', 'grid.color': '#59626e',
          **dict.fromkeys(('text.color', 'axes.labelcolor', 'axes.edgecolor', 'xtick.color', 'ytick.color'),
                          '#d5dae0')})
WIDTHS = 280, 640  # pixels that a picture has at least and at most when detections are drawn: text has a fixed size


def write_page(out: Path, cfg, report: dict) -> Path:
    """Write ``index.html``, ``report.json``, ``figures/`` and ``pictures/`` to a folder.

    Args:
        out: the folder; pictures of test images are in its ``images/``.
        cfg: the config of the runs.
        report: ``command``, ``config``, ``checkpoint``, ``metric`` and ``rows``, of which the first is the ANN's.

    Returns:
        The page.
    """
    import jinja2

    from mmsnn.openmmlab.metrics import ADDITION_PICOJOULE, MAC_PICOJOULE
    (ann, *rows), metric = report['rows'], report['metric']
    report = dict(report, versions=versions(), constants=dict(
        mac_picojoule=MAC_PICOJOULE, addition_picojoule=ADDITION_PICOJOULE, shown_score=SCORE))
    groups = by_method(rows)
    first = {key: group[0] for key, group in groups.items()}  # seed 0, which the details are of
    steps = sorted({time_steps for _, time_steps in groups})
    figures = draw_figures(out / 'figures', ann, rows, first, steps, metric)
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True).get_template('report.html.j2')
    html = template.render(
        report, title=Path(report['config']).stem, ann=ann, groups=groups, first=first, steps=steps, figures=figures,
        pipelines=list(dict.fromkeys(name for name, _ in first)), readable=readable(name for name, _ in first),
        choices={name: written(row['choices']) for (name, _), row in first.items() if row['choices']}, mean=mean,
        ceiling=CEILING,
        decimals=2 if metric.startswith('accuracy') else 3, pictures=draw_pictures(out, ann, first),
        memory={name: next(row['memory'] for (other, _), row in first.items() if other == name)
                for name, _ in first}, middle=steps[len(steps) // 2],
        agreement=next(key for key in rows[0] if key in ('agreement/top1', 'agreement/bbox_mAP')),
        commands=[test_command(cfg, out, report['checkpoint'], row) for row in first.values()])
    save_json(report, out / 'report.json')
    page = out / 'index.html'
    page.with_suffix('.tmp').write_text(html)
    os.replace(page.with_suffix('.tmp'), page)
    return page


def by_method(rows: list[dict]) -> dict[tuple[str, int], list[dict]]:
    """Rows by pipeline and T, in the order of the pipelines; one for each seed, from 0 on."""
    groups: dict = {}
    names = list(dict.fromkeys(row['pipeline'] for row in rows))
    for row in sorted(rows, key=lambda row: (names.index(row['pipeline']), row['time_steps'], row['seed'])):
        groups.setdefault((row['pipeline'], row['time_steps']), []).append(row)
    return groups


def mean(group: list[dict], key: str, digits: int, unit: float = 1.) -> str:
    """Mean, and standard deviation where there are several, of a number in some rows."""
    values = [row[key] / unit for row in group]
    spread = f' ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):,.{digits}f}{spread}'


def draw_figures(folder: Path, ann: dict, rows: list[dict], first: dict, steps: list[int], metric: str) -> dict:
    """Draw every figure for a light and a dark page; return their names and the two files as data URIs."""
    import matplotlib
    matplotlib.use('Agg')

    from mmsnn.analysis import plots
    _, curves, _ = summarise([ann, *rows], metric)
    names = list(dict.fromkeys(name for name, _ in first))
    named = readable(names)

    def errors(time_steps: int) -> dict:
        found = {}
        for name in names:
            states = {state: [layer[state] for layer in first[name, time_steps]['layers']]
                      for state in ('before', 'after')}
            if states['before'] == states['after']:
                states = dict(before=states['before'])
            found[named[name]] = {f'{state} calibration': boxes for state, boxes in states.items()}
        return found

    rates = {named[name]: {f'T = {t}': [layer['firing_rate'] for layer in first[name, t]['layers']] for t in steps}
             for name in names}
    some = next(iter(first.values()))
    energy = {'ANN': energy_parts(some, True)} | {f'{named[name]}, T = {t}': energy_parts(row)
                                                  for (name, t), row in first.items()}
    macs = rows[0]['ann_macs']
    todo: dict[str, Callable] = dict(
        scores=lambda path: plots.plot_comparison(curves, ann[metric], macs, path, metric))
    todo |= {f'errors-{t}': lambda path, t=t: plots.plot_errors(errors(t), path) for t in steps}
    todo |= dict(rates=lambda path: plots.plot_layers(rates, path, 'spikes per neuron and time step'),
                 energy=lambda path: plots.plot_energy(energy, path))
    if 'threshold_shares' in ann:
        todo['thresholds'] = lambda path: plots.plot_thresholds(ann['threshold_steps'], ann['threshold_shares'], path)
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, dict[str, str]] = {}
    for name, draw in progress_bar(todo.items(), 'figures'):
        for theme, style in THEMES.items():
            path = folder / f'{name}{"" if theme == "light" else "-dark"}.png'
            with matplotlib.rc_context(style):
                draw(path)
            figures.setdefault(name, {})[theme] = data_uri(path)
    return figures


def energy_parts(row: dict, ann: bool = False) -> dict[str, float]:
    """What SpikeMetric's estimate of the energy consists of, millijoule per image."""
    from mmsnn.openmmlab.metrics import ADDITION_PICOJOULE, MAC_PICOJOULE
    macs = row['spike/ann_macs'] if ann else row['spike/analog_macs']
    parts = {'multiply-accumulates': macs * MAC_PICOJOULE * 1e-9,
             'those of parts that never spike': row['spike/other_macs'] * MAC_PICOJOULE * 1e-9}
    if not ann:
        parts['additions caused by spikes'] = row['spike/synaptic_operations'] * ADDITION_PICOJOULE * 1e-9
    return parts


def draw_pictures(out: Path, ann: dict, first: dict) -> list[dict]:
    """For each image shown: the picture, and the predictions of the ANN and of every pipeline and T.

    Detections are drawn; predictions of classes are left to the page.
    """
    shown = []
    predicted = {('ANN', 0): ann['predictions']} | {key: row['predictions'] for key, row in first.items()}
    bar = progress_bar(total=len(ann['predictions']) * len(predicted), desc='pictures')
    (out / 'pictures').mkdir(exist_ok=True)
    for number, reference in enumerate(ann['predictions']):
        source = out / 'images' / f'{number}.png'
        entry = dict(index=reference['index'], original=data_uri(source), predictions={})
        for (name, time_steps), predictions in predicted.items():
            prediction = dict(predictions[number])
            if 'bboxes' in prediction:
                path = out / 'pictures' / f'{number}-{slug(name)}-{time_steps}.jpg'
                draw_detections(source, prediction, ann['classes'], path)
                prediction['picture'] = data_uri(path)
            entry['predictions'][name, time_steps] = prediction
            bar.update()
        shown.append(entry)
    bar.close()
    if 'bboxes' in ann['predictions'][0]:
        draw_grid(out, first, len(shown))
    return shown


def draw_grid(out: Path, first: dict, count: int) -> None:
    """Put the pictures of the last pipeline beside the ANN's into one figure."""
    import mmcv

    from mmsnn.analysis.plots import plot_pictures
    name = list(first)[-1][0]
    (title,) = readable([name]).values()
    columns = {'ANN': ('ANN', 0)} | {f'{title}, T = {t}': (other, t) for other, t in first if other == name}
    plot_pictures({f'image {number + 1}': {
        title: mmcv.imread(out / 'pictures' / f'{number}-{slug(method)}-{steps}.jpg', channel_order='rgb')
        for title, (method, steps) in columns.items()} for number in range(count)}, out / 'figures' / 'pictures.png')


def draw_detections(source: Path, prediction: dict, classes: list[str], path: Path) -> None:
    """Draw boxes, classes and scores with mmdet's visualizer; small pictures are enlarged first, large ones reduced."""
    import mmcv
    import torch
    from mmdet.structures import DetDataSample
    from mmdet.visualization import DetLocalVisualizer
    from mmengine.structures import InstanceData
    image = mmcv.imread(source, channel_order='rgb')
    width = min(max(image.shape[1], WIDTHS[0]), WIDTHS[1])
    scale = width / image.shape[1]
    image = mmcv.imrescale(image, scale, interpolation='area' if scale < 1 else 'bicubic')
    boxes = torch.tensor(prediction['bboxes']).reshape(-1, 4) * scale
    boxes = boxes.clamp(min=0).minimum(torch.tensor([image.shape[1], image.shape[0]] * 2) - 1)
    sample = DetDataSample(pred_instances=InstanceData(
        bboxes=boxes, labels=torch.tensor(prediction['labels'], dtype=torch.long),
        scores=torch.tensor(prediction['scores'])))
    visualizer = DetLocalVisualizer(line_width=2)
    visualizer.dataset_meta = dict(classes=classes)
    visualizer.add_datasample('', image, sample, draw_gt=False, pred_score_thr=SCORE, out_file=str(path))


def data_uri(path: Path) -> str:
    """A picture as text that a page can hold."""
    kind = 'jpeg' if path.suffix == '.jpg' else 'png'
    return f'data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}'


def slug(text: str) -> str:
    """A name that is fit for a file."""
    return ''.join(letter if letter.isalnum() else '_' for letter in text)


def test_command(cfg, out: Path, checkpoint: str, row: dict) -> str:
    """The command that computes a row's scores anew."""
    from mmsnn.openmmlab.hooks import HOOK_TYPES, WRAPPED
    hook = next(index for index, hook in enumerate(cfg.custom_hooks) if hook['type'] in HOOK_TYPES)
    wrapper = find(cfg.model, WRAPPED)
    name, own = parse_pipeline(row['pipeline'])[0], hook_of(cfg)
    # Options of the config's hook stand in the config whatever its pipeline: those of another are put right.
    wanted, given = job_pipeline(row, own).in_effect(), make_pipeline(name, **own[1]).in_effect()
    changed = {key: value for key, value in wanted.items() if key not in given or value != given[key]}
    changed |= dict(pipeline=name, seed=row['seed'])
    settings = [f'{wrapper}.time_steps={row["time_steps"]}']
    settings += [shlex.quote(f'custom_hooks.{hook}.{key}={value}') for key, value in changed.items()]
    return f'python tools/test.py {out / "config.py"} {checkpoint} --cfg-options ' + ' '.join(settings)


def find(model: dict, types, path: str = 'model') -> str | None:
    """Where in a model config the first module of one of some types stands."""
    if model.get('type') in types:
        return path
    return next((found for key, value in model.items() if isinstance(value, dict)
                 and (found := find(value, types, f'{path}.{key}'))), None)
