"""Which cells of the detectors' tables a row of the demo, or of a report, fills, and how; see tools/_tables.py."""
from mmsnn.experiments.demo import METHODS, WEIGHTS

SHARES = 'backbone, neck, heads'


def whole(row: dict) -> dict:
    """A row of docs/detectors.md: additions, and behind a comma multiplications of what a rate code leaves graded.

    Those of norms alone, below 1 %, are not named.
    """
    if row['time_steps'] is None:
        return {(f'{row["detector"]}, ANN', 'mAP'): f'{row["bbox_mAP"]:.3f}'}
    kind, _, options = row['pipeline'].removeprefix('whole-').partition(':')
    named = ', '.join(f'`{word}`' for word in (kind.removeprefix('differential'), options) if word)
    name = ', '.join(filter(None, [row['detector'], 'SNN', named, str(row['time_steps'])]))
    counts = [row.get(f'{kind}_operations', 0) / 1e6 for kind in ('event', 'graded')]
    return {(name, 'mAP'): f'{row["bbox_mAP"]:.3f}', (name, 'energy'): f'{row["event_energy_ratio"]:.3f}',
            (name, 'operations, millions'): ', '.join(f'{count:.0f}' for count in counts if count > counts[0] / 100),
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
    """A row of the blood cells' second table of docs/results.md, which has a column for each T."""
    name = f'{METHODS.get(row["pipeline"])} (`{row["pipeline"]}`)'
    return {} if row['time_steps'] not in (32, 64) else {
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
