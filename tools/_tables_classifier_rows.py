"""What the pages call the rows of the classifiers' tables, and with what they are filled; see tools/_tables.py."""
import json
import re
from pathlib import Path

# Of docs/signed.md: pipelines that differ in one ingredient.
A, GRADIENT, W = 'signed:bias=True', "tune=('bias','threshold')", 'signed:learning_rate=0.01,weights=True,iterations'
WITH_WEIGHTS = f'{A},weights=True,iterations=200,learning_rate=0.01'
INGREDIENTS = {
    'light': "the paper's `light`", 'light:shift=potential': '+ start at half the threshold',
    'light:shift=potential,signed=True': '+ signed spikes',
    'light:shift=potential,signed=True,max_spikes=2': '+ two spikes a step',
    'light:shift=potential,signed=True,max_spikes=4,max_rate=2': '+ four, and thresholds for a rate of 2',
    'signed': 'initial potential instead of the bias: **`signed`**',
    'signed:potential=channel,bias=True': 'potential per channel, then bias',
    A: 'potential per position, then bias (A)', f'{A},signed=False': 'A without negative spikes',
    f'{A},max_spikes=2,max_rate=1': 'A with a rate of 1, two spikes a step',
    f'{A},max_spikes=2': 'A with two spikes a step', f'{A},max_spikes=3': 'A with three',
    f'{A},max_spikes=None': 'A without a bound', f'{A},rounds=2': 'A, two rounds',
    f'{A},bias_per_step=True': 'A, one bias per step', f'{A},threshold=balanced': 'A, local threshold balancing',
    f'{A},rounding=floor': 'A, thresholds scored with the floor', WITH_WEIGHTS: 'A and weights',
    f'{WITH_WEIGHTS},{GRADIENT}': 'A and weights, bias and threshold by gradient',
    f'{W}=200': '`signed` and weights, 200 iterations a layer', f'{W}=1000': 'the same, 1,000 a layer',
    f'{W}=200,blockwise=True': '`signed` and weights by residual block, 200 iterations a block',
    f'{W}=1000,blockwise=True': 'the same, 1,000 a block',
    f'{W}=1000,blockwise=True,{GRADIENT}': 'the same, bias and threshold by gradient'}
DELAYED = {'signed': '`signed`, the first step not read (delayed readout)'}


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


def exported(*rows: str):
    """Reader of what tools/check_export.py prints, on docs/export.md: a row for each command's file, and beside ONNX
    one of mmsnn in float64."""
    columns = 'mean difference of the scores', 'largest', 'images within 1e-4', 'same class'
    line = r'{}: mean difference (\S+), largest ([^;]+); (\d+) of \d+ images within 1e-4, same class for (\d+)'

    def read(folder: Path) -> dict:
        cells = {}
        for number, row in enumerate(rows):
            log = (folder / f'{number}.log').read_text()
            own = f'{row.partition(",")[0]}, mmsnn in float64 against itself in float32'
            for name, printed in [(row, 'the file'), (own, 'mmsnn in float64')][:2 if 'ONNX' in row else 1]:
                values = re.findall(line.format(printed), log)[-1]
                cells |= {(name, column): value for column, value in zip(columns, values)}
        return cells
    return read


def of_a_classifier(path: str, names: dict[str, str]):
    """Reader of the classifier's report on docs/report.md, where a cell has a number for each T."""
    columns = {'top-1 at T = 4, 8, 16': ('accuracy/top1', 1), 'agreement with the ANN, %': ('agreement/top1', 1),
               'energy, ANN = 1': ('spike/energy_ratio', 3)}

    def read(folder: Path) -> dict:
        rows = sorted(json.loads(Path(path).read_text())['rows'], key=lambda row: row['time_steps'] or 0)
        return {(title, column): ', '.join(f'{row[key]:.{digits}f}' for row in rows if row['pipeline'] == pipeline)
                for pipeline, title in names.items() for column, (key, digits) in columns.items()}
    return read
