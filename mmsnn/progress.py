"""How far long work is: a bar on a terminal, one line every half minute in a log."""
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from tqdm import tqdm

INTERVAL = 30.  # seconds between two lines in a log; work that takes less needs none
LOGGER = logging.getLogger('mmsnn')


class LoggedProgress:
    """Stands for a tqdm bar where standard error is no terminal; see :func:`progress_bar`."""

    def __init__(self, iterable: Iterable | None, desc: str, total: int | None, unit: str) -> None:
        self.iterable = iterable
        self.desc, self.unit = desc, unit
        self.total = length(iterable) if total is None else total
        self.done = 0
        self.beside = ''
        self.started = self.told = time.monotonic()

    def __iter__(self) -> Iterator:
        for item in () if self.iterable is None else self.iterable:
            yield item
            self.update()

    def update(self, count: int = 1) -> None:
        """Count work that is done, and log a line where the last one is half a minute ago."""
        self.done += count
        now = time.monotonic()
        if now - self.told >= INTERVAL:
            self.told = now
            tell(self.line(now - self.started))

    def line(self, seconds: float) -> str:
        """What is done after so many seconds, and how long the rest will take at this pace."""
        if self.total:
            left = seconds * max(self.total - self.done, 0) / max(self.done, 1)
            share = f' of {self.total} {self.unit}s ({self.done / self.total:.0%}), about {duration(left)} left'
        else:
            share = f' {self.unit}s'
        return f'{self.desc}: {self.done}{share}, {duration(seconds)} so far' + (self.beside and f'; {self.beside}')

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self.beside = text

    def set_postfix(self, refresh: bool = True, **values) -> None:
        self.beside = ', '.join(f'{key}={value}' for key, value in values.items())

    def write(self, text: str) -> None:
        """Print a line that is news, not progress."""
        print(text, flush=True)

    def close(self) -> None:
        """There is nothing to tidy up: lines in a log stay."""

    def __enter__(self) -> 'LoggedProgress':
        return self

    def __exit__(self, *error) -> None:
        self.close()


Bar: TypeAlias = tqdm | LoggedProgress


def progress_bar(iterable: Iterable | None = None, desc: str = '', total: int | None = None, unit: str = 'step',
                 disable: bool = False) -> 'Bar':
    """Show how far some work is, as ``tqdm`` does, whose arguments these are; a file gets no control characters.

    Lines go to the logger ``'mmsnn'``, or to standard error where nobody has set up logging.
    """
    if disable or sys.stderr.isatty():
        return tqdm(iterable, desc, total, unit=unit, disable=disable)
    return LoggedProgress(iterable, desc, total, unit)


def length(iterable: Iterable | None) -> int | None:
    """How many items there are, or None where that is not known: a DataLoader may have a length, or may refuse."""
    try:
        return len(iterable)  # type: ignore[arg-type]
    except TypeError:
        return None


def tell(line: str) -> None:
    if LOGGER.hasHandlers():
        LOGGER.info(line)
    else:
        print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds as a reader says them: ``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 6000 else f'{seconds / 3600:.1f} h'


class PassedOn(logging.Handler):
    """Hands messages to another logger."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self.logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        self.logger.handle(record)


@contextmanager
def passed_on(logger: logging.Logger) -> Iterator[None]:
    """Let what mmsnn logs appear in another logger, once: mmengine's are outside of the hierarchy of ``logging``."""
    before = LOGGER.propagate, LOGGER.level, LOGGER.handlers[:]
    LOGGER.handlers = [handler for handler in before[2] if not isinstance(handler, PassedOn)] + [PassedOn(logger)]
    LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.propagate, LOGGER.handlers = before[0], before[2]
        LOGGER.setLevel(before[1])
