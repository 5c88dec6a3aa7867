"""Tables of the documentation, computed anew: which command makes a table, and which of its numbers differ.

A page and a command lay the same numbers out in different ways. Both are read as cells: row and column, as the page
names them, and the text that stands there. What a cell says beyond the computed text (a share in brackets) is not
compared.
"""
import json
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..files import save_json

Cells = dict[tuple[str, str], str]
NUMBER = re.compile(r'-?\d[\d,]*\.?\d*')


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Args:
        page: file, relative to the repository.
        head: how its first line begins.
        commands: shell commands that compute it, each of which goes on where an earlier call was ended; what they print
            goes to ``{folder}/N.log``, N from 0 on.
        cells: reads what the commands have left in a folder.
        needs: files and folders without which a machine cannot run them.
        minutes: what they take of one core, about.
        under: the heading that the table stands under, where several on the page begin alike.
    """

    page: str
    head: str
    commands: tuple[str, ...]
    cells: Callable[[Path], Cells]
    needs: tuple[str, ...] = ()
    minutes: float = 1.
    under: str = ''

    @property
    def name(self) -> str:
        return f'{self.page}: {self.under and self.under + ": "}{self.head}'

    def missing(self, root: Path) -> list[str]:
        """What the commands need and this machine has not."""
        return [need for need in self.needs if not (root / need).exists()]


def markdown_tables(text: str) -> list[tuple[str, list[list[str]]]]:
    """The tables of a page: the heading that each stands under, and its rows of cells, the first being column names."""
    found: list[tuple[str, list[list[str]]]] = []
    heading, inside = '', False
    for line in text.splitlines():
        if line.startswith('#'):
            heading = line.lstrip('# ')
        if not line.startswith('|'):
            inside = False
            continue
        cells = [cell.strip() for cell in line.strip().strip('|').split('|')]
        if not inside:
            found.append((heading, []))
        inside = True
        if not all(re.fullmatch(r':?-+:?', cell) for cell in cells):
            found[-1][1].append(cells)
    return found


def cells_of(rows: list[list[str]]) -> Cells:
    """Cells by row and column.

    A row is named by its cells up to T where there is a column T, otherwise by as many as tell the rows apart; an empty
    first cell is that of the row before.
    """
    columns, *lines = rows
    for before, line in zip(lines, lines[1:]):
        line[0] = line[0] or before[0]
    keys = columns.index('T') + 1 if 'T' in columns else next(
        (count for count in range(1, len(columns)) if len({tuple(line[:count]) for line in lines}) == len(lines)),
        len(columns) - 1)
    return {(', '.join(filter(None, line[:keys])), column): cell
            for line in lines for column, cell in zip(columns[keys:], line[keys:]) if cell}


def page_cells(table: Table, root: Path) -> Cells:
    """What the page says.

    Raises:
        ValueError: the page has no such table.
    """
    for heading, rows in markdown_tables((root / table.page).read_text()):
        first = '| ' + ' | '.join(rows[0])
        if first.startswith(f'| {table.head}') and table.under in heading:
            return cells_of(rows)
    raise ValueError(f"{table.page} has no table that begins with '| {table.head}'")


def numbers(text: str) -> list[float]:
    return [float(number.replace(',', '')) for number in NUMBER.findall(text)]


def differences(page: Cells, computed: Cells) -> list[str]:
    """A line for each computed cell that the page does not have, or has with other numbers.

    What the page says with fewer digits is compared to as many, and a number behind ``≈``, which it has from fewer
    images, to 3 %.
    """
    lines = []
    for (row, column), text in computed.items():
        if (row, column) not in page:
            lines.append(f'row {row!r}, {column}: computed {text}, and not on the page')
            continue
        said = page[row, column]
        pairs = list(zip(NUMBER.findall(said), numbers(text)))
        roughly = .03 if '≈' in said else 0.
        if len(numbers(said)) < len(numbers(text)) or any(not equal(*pair, roughly) for pair in pairs):
            lines.append(f'row {row!r}, {column}: the page has {said}, computed {text}')
    return lines


def equal(said: str, value: float, roughly: float = 0.) -> bool:
    """Whether a number on a page is a value, rounded to the page's digits, or off by a share of it at most."""
    digits = len(said.partition('.')[2])
    return abs(float(said.replace(',', '')) - value) <= .5 * 10 ** -digits + roughly * abs(value) + 1e-9


def markdown(path: str, head: str = '', rows: Mapping[str, str] | None = None,
             only: Callable[[str], bool] = lambda row: True) -> Callable[[Path], Cells]:
    """Read a table that a command has written to a file.

    Args:
        path: of the file, from the repository on.
        head: how its first line begins, where the file has several.
        rows: what the page calls a row -> what the file calls it; by default all rows, by their own names.
        only: which of the page's rows.
    """
    def read(folder: Path) -> Cells:
        for _, lines in markdown_tables(Path(path).read_text()):
            if ('| ' + ' | '.join(lines[0])).startswith(f'| {head}'):
                cells = cells_of(lines)
                named = {own: page for page, own in rows.items()} if rows else {row: row for row, _ in cells}
                return {(named[row], column): text for (row, column), text in cells.items()
                        if row in named and only(named[row])}
        raise ValueError(f"{path} has no table that begins with '| {head}'")
    return read


def transposed(*sources: tuple[str, Callable[[Path], Cells]]) -> Callable[[Path], Cells]:
    """Read tables of one row each, whose columns are the rows of the page: (column of the page, reader) for each."""
    return lambda folder: {(column.removeprefix('T = '), name): text for name, read in sources
                           for (_, column), text in read(folder).items()}


def printed(*rows: tuple[str, Mapping[str, tuple[str, float]]]) -> Callable[[Path], Cells]:
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


def stored(path: str, place: Callable[[dict], Cells]) -> Callable[[Path], Cells]:
    """Read ``table.json`` of tools/demo.py; ``place`` says which cells of the page a row fills, and with what."""
    return lambda folder: {cell: text for row in json.loads(Path(path).read_text())
                           for cell, text in place(row).items()}


def recompute(table: Table, root: Path, folder: Path, show: Callable[[str], None] = print) -> list[str]:
    """Run a table's commands, those that have not finished in an earlier call, and compare; return what differs.

    Args:
        table: which.
        root: the repository, the working directory of the commands.
        folder: gets their logs, and ``done.json``: the commands that have finished.
        show: told of each command before it starts.

    Raises:
        RuntimeError: a command fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'done.json'
    done = json.loads(path.read_text()) if path.is_file() else []
    for number, command in enumerate(table.commands):
        if command in done:
            continue
        show(f'  $ {command}')
        started = time.monotonic()
        with open(folder / f'{number}.log', 'w') as log:
            status = subprocess.run(command, shell=True, cwd=root, stdout=log, stderr=subprocess.STDOUT).returncode
        if status:
            raise RuntimeError(f'{command} failed; {folder / f"{number}.log"} says why')
        show(f'    {time.monotonic() - started:.0f} s')
        done.append(command)
        save_json(done, path)
    return differences(page_cells(table, root), table.cells(folder))
