"""Cells of a page's tables from what commands have left: tables of the sweep, rows of the demo and of reports, logs."""
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from .recompute import Cells, cells_of, is_table, markdown_tables

Reader = Callable[[Path], Cells]  # told where the logs of the commands are
SWEEPS = 'work_dirs/sweep'
LEVELS, SIZES, EVENTS = 'levels a step', 'synaptic operations', 'the same by events'  # of a sweep's tables


def markdown(path: str, head: str = '', rows: Mapping[str, str] | None = None,
             only: Callable[[str], bool] = lambda row: True) -> Reader:
    """Read a table that a command has written to a file.

    Args:
        path: of the file, from the repository on.
        head: how its first line begins, where the file has several.
        rows: what the page calls a row -> what the file calls it; by default all rows, by their own names.
        only: which of the page's rows.
    """
    def read(folder: Path) -> Cells:
        for heading, lines in markdown_tables(Path(path).read_text(encoding='utf-8')):
            if is_table(heading, lines, head):
                cells = cells_of(lines)
                named = {own: page for page, own in rows.items()} if rows else {row: row for row, _ in cells}
                return {(named[row], column): text for (row, column), text in cells.items()
                        if row in named and only(named[row])}
        raise ValueError(f"{path} has no table that begins with '| {head}'")
    return read


def transposed(*sources: tuple[str, Reader]) -> Reader:
    """Read tables of one row each, whose columns are the rows of the page: (column of the page, reader) for each."""
    return lambda folder: {(column.removeprefix('T = '), name): text for name, read in sources
                           for (_, column), text in read(folder).items()}


def printed(*rows: tuple[str, Mapping[str, tuple[str, float]]]) -> Reader:
    """Read metrics that test scripts have printed.

    Args:
        rows: for each command the row of the page, and for each column the metric and the unit that it is given in.
    """
    def read(folder: Path) -> Cells:
        cells = {}
        for number, (row, columns) in enumerate(rows):
            text = (folder / f'{number}.log').read_text()
            for column, (metric, unit) in columns.items():
                values = re.findall(rf'\b{re.escape(metric)}: (-?[\d.]+)', text)
                if not values:
                    raise ValueError(f'{folder / f"{number}.log"} has no {metric}')
                cells[row, column] = f'{float(values[-1]) / unit:.6g}'
        return cells
    return read


def stored(path: str, place: Callable[[dict], Cells]) -> Reader:
    """Read the rows that the demo, a sweep or a report has stored.

    Args:
        path: of ``table.json``, ``rows.json`` or ``report.json``, from the repository on.
        place: which cells of the page a row fills, and with what.
    """
    def read(folder: Path) -> Cells:
        found = json.loads(Path(path).read_text())
        rows = found['rows'] if isinstance(found, dict) else found
        return {cell: text for row in rows for cell, text in place(row).items()}
    return read


def together(*readers: Reader) -> Reader:
    """What several readers find."""
    return lambda folder: {cell: text for read in readers for cell, text in read(folder).items()}


def sweep(model: str, folder: str, arguments: str) -> str:
    """The command of a sweep that :func:`swept` reads; ``model`` is its config and checkpoint."""
    return f'python tools/sweep.py {model} --work-dir {SWEEPS}/{folder} {arguments}'


def swept(folder: str, head: str = '', rows: Mapping[str, str] | None = None) -> Reader:
    """Read one of a sweep's tables, without the numbers of levels, which few pages have.

    Args:
        folder: of the sweep, in ``work_dirs/sweep``.
        head: how its first line begins; by default the table of scores.
        rows: as in :func:`markdown`.
    """
    read = markdown(f'{SWEEPS}/{folder}/table.md', head, rows)
    return lambda logs: {cell: text for cell, text in read(logs).items() if cell[1] != LEVELS}


def over_time(folder: str) -> Reader:
    """Read the sweep of one pipeline with its ceiling as rows, one for each T."""
    return transposed(('top-1, %', swept(folder, 'accuracy')), ('ceiling', swept(folder, 'ceiling')),
                      (f'{SIZES}, millions', swept(folder, SIZES)), ('spikes per neuron', swept(folder, 'spikes')))


def by_levels(*folders: str) -> Reader:
    """Read sweeps as rows of levels, pipeline and T, with scores and operations."""
    def read(logs: Path) -> Cells:
        cells: Cells = {}
        for folder in folders:
            for title, head in (('top-1, %', 'accuracy'), ('operations by events, M', EVENTS), ('by size, M', SIZES)):
                found = markdown(f'{SWEEPS}/{folder}/table.md', head)(logs)
                cells |= {(f'{found[name, LEVELS]}, `{name}`, {column.removeprefix("T = ")}', title): text
                          for (name, column), text in found.items() if column != LEVELS}
        return cells
    return read


def across(folders: Mapping[str, str]) -> Reader:
    """Read sweeps of one T: a column for each pipeline, and a row for each sweep (what the page calls it -> folder)."""
    return lambda logs: {(name, f'`{pipeline}`'): text for name, folder in folders.items()
                         for (pipeline, _), text in swept(folder)(logs).items()}


def with_ceiling(folder: str, names: Mapping[str, str], metric: str, digits: int, data: str = '') -> Reader:
    """Read score, ceiling and operations of each pipeline, in three columns for each T, or for a data set.

    Args:
        folder: of the sweep, in ``work_dirs/sweep``.
        names: pipeline -> what the page calls it.
        metric: the score.
        digits: of it.
        data: the column of the score, where it is not T.
    """
    def place(row: dict) -> Cells:
        name, column = names.get(row['pipeline']), data or f'T = {row["time_steps"]}'
        return {} if name is None else {
            (name, column): f'{row[metric]:.{digits}f}',
            (name, f'ceiling ({column})'): f'{row[f"{metric} (ceiling)"]:.{digits}f}',
            (name, f'Mops ({column})'): f'{row["synaptic_operations"] / 1e6:.1f}'}
    return stored(f'{SWEEPS}/{folder}/rows.json', place)
