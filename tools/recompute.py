"""Compute the tables of README.md and docs/ anew, and name the rows that differ from what the pages say.

    python tools/recompute.py --list                  what there is, how long it takes, what this machine lacks for it
    python tools/recompute.py detectors.md results    tables whose page, heading or first line has one of these words
    python tools/recompute.py --minutes 60            all that this machine can, as long as the time is not over

What is finished is kept in work_dirs: another call goes on. ``--restart`` begins anew. Exit status 1 if a row differs.
"""
import argparse
import os
import re
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

from _tables import LEFT_OUT, TABLES

from mmsnn.experiments.recompute import recompute


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('words', nargs='*', help='tables with one of these in their name; all where there is none')
    parser.add_argument('--list', action='store_true', help='compute nothing')
    parser.add_argument('--minutes', type=float, default=float('inf'), help='begin no table after this time')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs', 'recompute'), help='default: %(default)s')
    parser.add_argument('--restart', action='store_true', help='forget what earlier calls have computed')
    args = parser.parse_args()
    os.chdir(ROOT)  # where the commands run
    os.environ['PATH'] = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'  # their python is this one
    chosen = [table for table in TABLES if not args.words or any(word in table.name for word in args.words)]
    if not chosen:
        sys.exit(f'no table has {" or ".join(args.words)} in its name: --list shows all')
    started, differing, left = time.monotonic(), 0, 0
    for table in chosen:
        missing = table.missing(ROOT)
        lacks = f': not here, needs {", ".join(missing)}' if missing else ''
        print(f'{table.name} (about {table.minutes:g} minutes of one core){lacks}')
        if args.list or missing:
            continue
        if time.monotonic() - started > 60 * args.minutes:
            left += 1
            continue
        folder = args.work_dir / re.sub(r'\W+', '_', table.name)
        if args.restart:
            shutil.rmtree(folder, ignore_errors=True)
        try:
            found = recompute(table, ROOT, folder)
        except (RuntimeError, ValueError, OSError) as error:
            found = [str(error)]
        print('\n'.join(f'  {line}' for line in found or ['as on the page']), flush=True)
        differing += bool(found)
    if args.list:
        for reason, places in LEFT_OUT.items():
            print(f'left out, {reason}: {", ".join(f"{page}: {head}".strip(": ") for page, head in places)}')
    else:
        print(f'{differing} of {len(chosen) - left} tables differ' + f'; {left} were not begun' * bool(left))
    sys.exit(1 if differing else 0)


if __name__ == '__main__':
    main()
