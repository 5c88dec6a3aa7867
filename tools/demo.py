"""ANN against spiking detectors on real data, for every pipeline and several T [Table 4 of the paper].

    python tools/demo.py --tour             digits, ten minutes: a picture, a part of the table, a page (= make demo)
    python tools/demo.py                    digits, the whole table; needs nothing but this repository (= make table)
    python tools/demo.py --data bccd        blood cells: needs data/bccd (see configs/_base_/bccd.py)

Each row runs as ``tools/test.py CONFIG CHECKPOINT`` does: mmdet's runner, CalibrationHook, CocoMetric. Rows that are in
``<work-dir>/table.json`` already are not run again (``--restart`` forgets them).
"""
import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent
sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(ROOT / 'tools')]

from mmsnn.experiments.demo import DETECTORS, METHODS, TABLE_4, TIME_STEPS, Demo, complete, jobs_of, tour, write_table
from mmsnn.machine import CORES


def prepare(data: str) -> None:
    """Make or check the data set."""
    if data == 'digits':
        from make_digits import make_digits
        make_digits(ROOT / 'data' / 'digits')
    elif not (ROOT / 'data' / data / 'test.json').is_file():
        sys.exit(f'{ROOT / "data" / data} does not hold the data set: configs/_base_/{data}.py says what belongs there')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tour', action='store_true', help='what `make demo` shows, instead of the table')
    parser.add_argument('--minutes', type=float, default=10, help='time that the tour takes at most, about')
    parser.add_argument('--data', choices=['digits', 'bccd'], default='digits')
    parser.add_argument('--time-steps', type=int, nargs='+', default=TIME_STEPS, help='of the table')
    parser.add_argument('--pipelines', nargs='+', default=list(METHODS), metavar='NAME[:OPTION=VALUE,..]',
                        help='of the table: as configs are named (whole-differential, whole-signed and '
                        'whole-advanced are others), with options of their CalibrationHook')
    parser.add_argument('--detectors', choices=DETECTORS, nargs='+', default=list(TABLE_4),
                        help='of the table; FCOS and YOLOX have whole-differential alone, on the digits')
    parser.add_argument('--workers', type=int, default=CORES, help='rows computed at the same time')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/demo (digits), work_dirs/demo_bccd')
    parser.add_argument('--restart', action='store_true', help='forget what earlier runs found')
    args = parser.parse_args()

    os.chdir(ROOT)  # the configs name their data relative to the repository
    work_dir = args.work_dir or Path('work_dirs', 'demo' if args.data == 'digits' else f'demo_{args.data}')
    work_dir.mkdir(parents=True, exist_ok=True)
    demo = Demo(ROOT, args.data, work_dir)
    if args.restart:
        for name in ('table.json', 'page/rows.json'):
            (work_dir / name).unlink(missing_ok=True)
    prepare(args.data)
    if args.tour:
        try:
            tour(demo, args.workers, args.minutes)
        except RuntimeError as error:
            sys.exit(str(error))
        print('\nThe whole table, which takes longer: make table')
        return
    rows, _ = complete(demo, jobs_of(args.detectors, args.pipelines, args.time_steps), args.workers)
    print(f'\n{write_table(demo, rows)}\n\nsaved {work_dir / "table.json"}, {work_dir / "table.md"} and '
          f'{work_dir / "map.png"}')


if __name__ == '__main__':
    main()
