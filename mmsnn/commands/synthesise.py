"""Make calibration images from a network's own statistics: ``python tools/synthesise.py CONFIG CKPT -o IMAGES.pth``.

Where no training images are at hand [section 5.7 of the paper]. Give the result to the calibration as
``CalibrationHook(images='IMAGES.pth')``, or to ``mmsnn.calibrate``, which takes the list of batches in it.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

from mmsnn.calibration.synthesis import synthesise
from mmsnn.files import write_file
from mmsnn.openmmlab.scripts import check_checkpoint, check_writable
from mmsnn.openmmlab.wrapper import spiking_parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of the spiking model')
    parser.add_argument('checkpoint', help='checkpoint of the ANN')
    parser.add_argument('-o', '--out', required=True, type=Path, help='file to write')
    parser.add_argument('--size', type=int, nargs=2, required=True, metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--num-images', type=int, default=256)
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--iterations', type=int, default=500)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={},
                        help='override settings of the config')
    args = parser.parse_args()
    check_checkpoint(args.checkpoint)
    check_writable(args.out)
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = cfg.get('work_dir') or str(Path('work_dirs', Path(args.config).stem))
    runner = Runner.from_cfg(cfg)
    runner.load_checkpoint(args.checkpoint)
    part, *others = spiking_parts(runner.model).values()
    if others:
        parser.error('the model has several spiking parts; synthesise for each with mmsnn.synthesise')
    batches = synthesise(part.ann, args.num_images, tuple(args.size), batch_size=args.batch_size,
                         iterations=args.iterations, seed=args.seed)
    write_file([batch.cpu() for batch in batches], args.out)
    runner.logger.info(f'saved {sum(map(len, batches))} images to {args.out}')


if __name__ == '__main__':
    main()
