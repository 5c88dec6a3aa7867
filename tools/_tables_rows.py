"""Which cells of the pages' tables a row of the demo, or of a report, fills, and with what; see tools/_tables.py."""
import json
from pathlib import Path

from mmsnn.experiments.demo import METHODS, WEIGHTS
from mmsnn.experiments.readers import SWEEPS

SHARES = 'backbone, neck, heads'


def sweep(model: str, folder: str, arguments: str) -> str:
    return f'python tools/sweep.py {model} --work-dir {SWEEPS}/{folder} {arguments}'


def whole(row: dict) -> dict:
    """A row of docs/detectors.md: additions, and behind a comma multiplications of what a rate code leaves graded."""
    if row['time_steps'] is None:
        return {(f'{row["detector"]}, ANN', 'mAP'): f'{row["bbox_mAP"]:.3f}'}
    kind, _, options = row['pipeline'].removeprefix('whole-').partition(':')
    named = ', '.join(f'`{word}`' for word in (kind.removeprefix('differential'), options) if word)
    name = ', '.join(filter(None, [row['detector'], 'SNN', named, str(row['time_steps'])]))
    counts = [f'{row.get(f"{kind}_operations", 0) / 1e6:.0f}' for kind in ('event', 'graded')]
    return {(name, 'mAP'): f'{row["bbox_mAP"]:.3f}', (name, 'energy'): f'{row["event_energy_ratio"]:.3f}',
            (name, 'operations, millions'): ', '.join(counts[:1 if counts[1] == '0' else 2]),
            **by_part(name, row, 'event'), **by_part(f'{row["detector"]}, ANN', row, 'ann')}


def by_part(name: str, row: dict, kind: str) -> dict:
    """The cell with what backbone, neck, and heads together have of the ANN's energy."""
    shares = {key.removesuffix(f'_{kind}_share'): value for key, value in row.get('shares', {}).items()
              if key.endswith(f'_{kind}_share')}
    if not shares:
        return {}
    values = [shares.pop(part) for part in ('backbone', 'neck') if part in shares] + [sum(shares.values())]
    return {(name, SHARES): ', '.join(f'{value:.3f}' for value in values)}


def without_shares(row: dict) -> dict:
    return {cell: text for cell, text in whole(row).items() if cell[1] != SHARES}


def by_time(row: dict) -> dict:
    """A row of the blood cells' table of docs/results.md, which has a column for each T."""
    name = f'{METHODS.get(row["pipeline"])} (`{row["pipeline"]}`)'
    return {} if row['time_steps'] is None else {
        (f'{row["detector"]}, {name}', f'T = {row["time_steps"]}'): f'{row["bbox_mAP"]:.3f}'}


def by_detector(data: str):
    """A row of the detectors' table of docs/signed.md."""
    def place(row: dict) -> dict:
        name = f'{row["detector"]}, {data}' + ', `signed` and weights' * (row['pipeline'] == WEIGHTS)
        return {(name, f'T = {row["time_steps"]}' if row['time_steps'] else 'ANN'): f'{row["bbox_mAP"]:.3f}'}
    return place


def narrowing(detector: str):
    """A row of a report on validation scenes: score and energy of one zone."""
    def place(row: dict) -> dict:
        option = row['pipeline'].partition(':')[2]
        return {(f'{detector}, {row["time_steps"]}', f'`{option}`'):
                f'{row["coco/bbox_mAP"]:.3f} ({row["spike/event_energy_ratio"]:.3f})'} if option else {}
    return place


def reported(row: dict) -> dict:
    """A row of the detector's report on docs/report.md."""
    if row['time_steps'] != 8:
        return {}
    last = row['layers'][-1]
    values = {'mAP': row['coco/bbox_mAP'], 'agreement, mAP': row['agreement/bbox_mAP'],
              'before': last['before']['median'], 'after': last['after']['median'], 'energy': row['spike/energy_ratio']}
    return {(f'`{row["pipeline"]}`', column): f'{value:.4f}' for column, value in values.items()}


def layer_by_layer(row: dict) -> dict:
    """A row of the report on docs/paper_networks.md."""
    if row['time_steps'] is None:
        return {}
    rates = [layer['firing_rate'] for layer in row['layers']]
    values = {'top-1, %': f'{row["accuracy/top1"]:.2f}', 'firing rate': f'{row["spike/firing_rate"]:.4f}',
              'median relative error, layers 1, 5, 10, 15': ', '.join(
                  f'{row["layers"][number - 1]["after"]["median"]:.3f}' for number in (1, 5, 10, 15)),
              'by layer': f'{min(rates):.3f} to {max(rates):.3f}',
              'energy, ANN = 1': f'{row["spike/energy_ratio"]:.3f}'}
    return {(f'`{row["pipeline"]}`, {row["time_steps"]}', column): text for column, text in values.items()}


def of_a_classifier(path: str, names: dict[str, str]):
    """Reader of the classifier's report on docs/report.md, where a cell has a number for each T."""
    columns = {'top-1 at T = 4, 8, 16': ('accuracy/top1', 1), 'agreement with the ANN, %': ('agreement/top1', 1),
               'energy, ANN = 1': ('spike/energy_ratio', 3)}

    def read(folder: Path) -> dict:
        rows = sorted(json.loads(Path(path).read_text())['rows'], key=lambda row: row['time_steps'] or 0)
        return {(title, column): ', '.join(f'{row[key]:.{digits}f}' for row in rows if row['pipeline'] == pipeline)
                for pipeline, title in names.items() for column, (key, digits) in columns.items()}
    return read
