"""Write a spiking network for other software: ``python tools/export.py CONFIG CKPT -o OUT.nir --format nir``.

CKPT is a calibrated checkpoint, or that of the ANN, which is then calibrated as by ``tools/calibrate.py``. Of a
detector the backbone is written. The file takes images as the network does: after the data preprocessor of the config.
docs/export.md says what the formats hold and how to run them.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from mmengine.config import DictAction

from mmsnn.export.formats import NEEDS, ExportError, export
from mmsnn.openmmlab.scripts import check_checkpoint, check_writable, load_calibrated
from mmsnn.openmmlab.wrapper import spiking_parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of the spiking model')
    parser.add_argument('checkpoint', help='calibrated checkpoint, or that of the ANN')
    parser.add_argument('-o', '--out', required=True, type=Path, help='file to write')
    parser.add_argument('--format', required=True, choices=list(NEEDS))
    parser.add_argument('--size', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'),
                        help='of the images that the file is for (default: that of the first test image)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        help='override settings of the config, such as model.time_steps=8')
    args = parser.parse_args()
    if args.out.is_dir():
        parser.error(f'--out {args.out} is a folder; name the file to write')
    check_checkpoint(args.checkpoint)
    check_writable(args.out)
    runner, model, _ = load_calibrated(args.config, args.checkpoint, args.cfg_options)
    part, *others = spiking_parts(model).values()
    if others:
        parser.error('the model has several spiking parts; write each with mmsnn.export.formats.export')
    device = next(model.parameters()).device
    if args.size is None:
        data = model.data_preprocessor(next(iter(runner.test_dataloader)), False)
        example = data['inputs'][:1]
    else:
        example = torch.zeros(1, 3, *args.size, device=device)
    try:
        export(part.snn, example, args.out, args.format)
    except (ExportError, ImportError) as problem:
        sys.exit(f'{args.out} is not written: {problem}')
    runner.logger.info(f'saved {args.out}, {args.out.stat().st_size / 1e6:.1f} MB, for images of '
                       f'{example.shape[2]} x {example.shape[3]} pixels, T = {part.snn.time_steps}')


if __name__ == '__main__':
    main()
