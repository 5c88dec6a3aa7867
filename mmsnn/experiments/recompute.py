"""Tables of the documentation, computed anew: which command makes a table, and which of its numbers differ.

A page and a command lay the same numbers out in different ways. Both are read as cells: row and column, as the page
names them, and the text that stands there. What a cell says beyond the computed text (a share in brackets) is not
compared.
"""
import json
import re
import subprocess
import time
from collections.abc import Callable
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
        rows: which of its rows these are, where other commands compute the rest.
    """

    page: str
    head: str
    commands: tuple[str, ...]
    cells: Callable[[Path], Cells]
    needs: tuple[str, ...] = ()
    minutes: float = 1.
    under: str = ''
    rows: str = ''

    @property
    def name(self) -> str:
        return f'{self.page}: {self.under and self.under + ": "}{self.head}{self.rows and f" ({self.rows})"}'

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
    first cell is that of the row before. A column whose name comes again is told apart by the column before it.
    """
    columns, *lines = rows
    unique = [column for column in columns if columns.count(column) == 1]
    columns = [column if column in unique else
               f'{column} ({next((other for other in reversed(columns[:place]) if other in unique), "")})'
               for place, column in enumerate(columns)]
    for before, line in zip(lines, lines[1:]):
        line[0] = line[0] or before[0]
    keys = columns.index('T') + 1 if 'T' in columns else next(
        (count for count in range(1, len(columns)) if len({tuple(line[:count]) for line in lines}) == len(lines)),
        len(columns) - 1)
    return {(', '.join(filter(None, line[:keys])), column): cell
            for line in lines for column, cell in zip(columns[keys:], line[keys:]) if cell}


def is_table(heading: str, rows: list[list[str]], head: str, under: str = '') -> bool:
    """Whether a table under a heading begins with ``head``."""
    return ' | '.join(rows[0]).startswith(head) and under in heading


def page_cells(table: Table, root: Path) -> Cells:
    """What the page says.

    Raises:
        ValueError: the page has no such table.
    """
    for heading, rows in markdown_tables((root / table.page).read_text(encoding='utf-8')):
        if is_table(heading, rows, table.head, table.under):
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
