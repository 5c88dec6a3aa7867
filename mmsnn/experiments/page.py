"""Figures, pictures and the page of a report, from the rows of its runs."""
import base64
import os
import shlex
import statistics
from pathlib import Path

from ..files import save_json
from ..neurons.pipelines import make_pipeline
from ..progress import progress_bar
from .drawing import COLORS, IOU, draw_detections, verdicts
from .environment import versions
from .figures import draw_figures
from .inspection import SCORE
from .intervals import standard_error
from .methods import job_pipeline, parse_pipeline, readable, written
from .runs import CEILING, hook_of

NEAR = .99  # of the best score: among the runs that reach it the page shows the cheapest first


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
        mac_picojoule=MAC_PICOJOULE, addition_picojoule=ADDITION_PICOJOULE, shown_score=SCORE, iou=IOU))
    groups = by_method(rows)
    first = {key: group[0] for key, group in groups.items()}  # seed 0, which the details are of
    steps = sorted({time_steps for _, time_steps in groups})
    figures = {name: {theme: data_uri(path) for theme, path in files.items()} for name, files in
               draw_figures(out / 'figures', ann, rows, first, steps, metric).items()}
    chosen = cheapest(groups, metric)
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True).get_template('report.html.j2')
    html = template.render(
        report, model=model_name(cfg), ann=ann, groups=groups, first=first, steps=steps, figures=figures,
        chosen=chosen, two_errors=two_errors, colors=COLORS, test_set=cfg.get('test_set_size', ann['tested']),
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
    page.with_suffix('.tmp').write_text(html, encoding='utf-8')
    os.replace(page.with_suffix('.tmp'), page)
    return page


def by_method(rows: list[dict]) -> dict[tuple[str, int], list[dict]]:
    """Rows by pipeline and T, in the order of the pipelines; one for each seed, from 0 on."""
    groups: dict = {}
    names = list(dict.fromkeys(row['pipeline'] for row in rows))
    for row in sorted(rows, key=lambda row: (names.index(row['pipeline']), row['time_steps'], row['seed'])):
        groups.setdefault((row['pipeline'], row['time_steps']), []).append(row)
    return groups


def cheapest(groups: dict[tuple[str, int], list[dict]], metric: str) -> tuple[str, int]:
    """Pipeline and T of the run that spends least energy, by events, of those whose score is within 1 % of the best."""
    scores = {key: statistics.mean(row[metric] for row in group) for key, group in groups.items()}
    near = [key for key, score in scores.items() if score >= NEAR * max(scores.values())]
    return min(near, key=lambda key: statistics.mean(row['spike/event_energy_ratio'] for row in groups[key]))


def two_errors(row: dict, ann: dict | None = None, unit: float = 1.) -> float | None:
    """Two standard errors of a run's score or, where the ANN's row is given, of its share of the ANN's score.

    ANN and spiking network are tested on the same images, so a share varies less than either score. None where the
    images are too few to tell.
    """
    scores = row.get('scores_without')
    if ann is not None and scores:
        scores = [score / other for score, other in zip(scores, ann['scores_without']) if other]
    return 2 * standard_error(scores) / unit if scores else None


def model_name(cfg) -> str:
    """Names the ANN of a config, and what it is tested on: ``RetinaNet with ResNet-50 on digits``."""
    from mmsnn.openmmlab.hooks import plain_config
    model = plain_config(cfg).model

    def name(part: dict) -> str:
        return str(part['type']).split('.')[-1] + (f'-{part["depth"]}' if 'depth' in part else '')

    inner = model.get('backbone') or model.get('network') or {}
    names = [name(model)] * ('Classifier' not in str(model['type'])) + [name(inner)] * ('type' in inner)
    root = Path(cfg.test_dataloader.dataset.get('data_root') or '').name
    return ' with '.join(names or [name(model)]) + (f' on {root}' if root else '')


def mean(group: list[dict], key: str, digits: int, unit: float = 1.) -> str:
    """Mean, and standard deviation where there are several, of a number in some rows."""
    values = [row[key] / unit for row in group]
    spread = f' ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):,.{digits}f}{spread}'


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
        truth = ann['truth'][number]
        if 'bboxes' in reference and truth is not None:
            entry['truth'] = len(truth['labels'])
            entry['truth_picture'] = draw_picture(source, None, truth, ann['classes'],
                                                  out / 'pictures' / f'{number}-truth.jpg')
        for (name, time_steps), predictions in predicted.items():
            prediction = dict(predictions[number])
            if 'bboxes' in prediction:
                path = out / 'pictures' / f'{number}-{slug(name)}-{time_steps}.jpg'
                prediction['picture'] = draw_picture(source, prediction, truth, ann['classes'], path)
                if truth is not None:
                    right, missed = verdicts(prediction, truth)
                    prediction |= dict(right=sum(right), wrong=len(right) - sum(right), missed=sum(missed))
            entry['predictions'][name, time_steps] = prediction
            bar.update()
        shown.append(entry)
    bar.close()
    if 'bboxes' in ann['predictions'][0]:
        draw_grid(out, first, len(shown))
    return shown


def draw_picture(source: Path, found: dict | None, truth: dict | None, classes: list[str], path: Path) -> str:
    """Draw detections, or the truth where there are none to draw, to a file; return it as a data URI."""
    import mmcv
    picture = draw_detections(mmcv.imread(source, channel_order='rgb'), found, truth, classes)
    mmcv.imwrite(picture[..., ::-1], str(path))
    return data_uri(path)


def draw_grid(out: Path, first: dict, count: int) -> None:
    """Put truth, ANN, and the last pipeline's pictures into one figure."""
    import mmcv

    from mmsnn.analysis.plots import plot_pictures
    name = list(first)[-1][0]
    (title,) = readable([name]).values()
    files = {'annotated': 'truth', 'ANN': 'ANN-0'} | {
        f'{title}, T = {t}': f'{slug(name)}-{t}' for other, t in first if other == name}
    pictures = {f'image {number + 1}': {
        title: mmcv.imread(path, channel_order='rgb') for title, stem in files.items()
        if (path := out / 'pictures' / f'{number}-{stem}.jpg').is_file()} for number in range(count)}
    plot_pictures(pictures, out / 'figures' / 'pictures.png')


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
    files = shlex.join([str(out / 'config.py'), checkpoint])
    return f'python tools/test.py {files} --cfg-options ' + ' '.join(settings)


def find(model: dict, types, path: str = 'model') -> str | None:
    """Where in a model config the first module of one of some types stands."""
    if model.get('type') in types:
        return path
    return next((found for key, value in model.items() if isinstance(value, dict)
                 and (found := find(value, types, f'{path}.{key}'))), None)
