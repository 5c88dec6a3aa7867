"""Make a small detection data set out of real handwritten digits, without any download.

The 8x8 digits that come with scikit-learn (1,797 samples of 43 writers) are enlarged, slanted, coloured and pasted
into textured scenes of varying size: a detection task that a thin network learns in minutes on a CPU, and that is
still hard enough to show what a coarser activation costs.

    python tools/make_digits.py data/digits
"""
import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
from mmengine.utils import ProgressBar
from sklearn.datasets import load_digits

VERSION = 1  # raise whenever the scenes change, so that folders made before are made anew
SPLITS = ('train', 'val', 'test')
SHARES = (0.7, 0.15, 0.15)  # of the digit samples; no sample is seen in two splits
INK = 0.25  # fainter pixels are no ink: they are neither painted nor inside a box


def split_samples(seed: int) -> dict:
    """Divide the sample indices of ``load_digits()`` into disjoint arrays, one per split."""
    count = len(load_digits().target)
    cuts = np.cumsum([round(share * count) for share in SHARES[:-1]])
    return dict(zip(SPLITS, np.split(np.random.default_rng(seed).permutation(count), cuts)))


def render_digit(sample: np.ndarray, height: float, rng: np.random.Generator) -> np.ndarray:
    """Enlarge one digit and crop it to its ink.

    Args:
        sample: Grey values from 0 to 1, (8, 8).
        height: Height of the 8 rows in pixels before rotation and cropping.
        rng: Draws width, rotation and slant.

    Returns:
        Opacity from 0 to 1, (h, w); its first and last row and column each hold ink.
    """
    scale_y, scale_x = height / 8, height / 8 * rng.uniform(0.8, 1.1)
    angle, slant = rng.uniform(-0.15, 0.15), rng.uniform(-0.15, 0.15)
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shape = rotate @ np.array([[scale_x, slant * scale_x], [0, scale_y]])
    # Cubic first, at about the final size: warpAffine over the 8x8 samples would show them as a linear lattice.
    # The empty rim lets strokes that touch the edge of the sample fade out.
    zoom = int(np.ceil(height / 8))
    fine = cv2.resize(np.pad(sample, 1).astype(np.float32), None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    side, center = int(height * 2), (len(fine) - 1) / 2
    offset = (side - 1) / 2 - shape @ [center / zoom, center / zoom]
    alpha = cv2.warpAffine(fine, np.column_stack([shape / zoom, offset]), (side, side))
    alpha = np.clip(alpha * 1.3, 0, 1)
    alpha[alpha < INK] = 0
    rows, cols = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    return alpha[rows[0]:rows[-1] + 1, cols[0]:cols[-1] + 1]


def draw_background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a grey or coloured, cloudy and noisy background with strokes that are no digits.

    Returns:
        Values from 0 to 255, (height, width, 3), float32.
    """
    tint = rng.uniform(-35, 35, 3) * (rng.random() < 0.6)
    clouds = rng.normal(0, 1, (height // 32 + 2, width // 32 + 2, 3)).astype(np.float32)
    clouds = cv2.resize(clouds, (width, height), interpolation=cv2.INTER_CUBIC) * rng.uniform(3, 14)
    image = (rng.uniform(50, 205) + tint + clouds).astype(np.float32)
    for _ in range(rng.integers(0, 7)):
        start = rng.integers(0, (width, height))
        color = (image.mean((0, 1)) + rng.uniform(-90, 90, 3)).tolist()
        if rng.random() < 0.6:
            end = start + rng.integers(-50, 50, 2)
            cv2.line(image, start.tolist(), end.tolist(), color, int(rng.integers(1, 5)), cv2.LINE_AA)
        else:
            end = start + rng.integers(5, 40, 2)
            cv2.rectangle(image, start.tolist(), end.tolist(), color, int(rng.integers(1, 4)))
    return image + rng.normal(0, rng.uniform(2, 8), (height, width, 1))


def draw_scene(samples: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple:
    """Compose one scene.

    Args:
        samples: The digits to choose from, values from 0 to 1, (n, 8, 8).
        labels: Their classes, (n, ).
        rng: The only source of chance.

    Returns:
        The image, (H, W, 3) uint8, and a list of ``(class, (x, y, w, h))`` in pixels.
    """
    height, width = rng.integers(160, 257, 2)
    image = draw_background(height, width, rng)
    taken, objects = np.zeros((height, width), bool), []
    for _ in range(rng.integers(3, 11)):
        index = rng.integers(len(samples))
        alpha = render_digit(samples[index], np.exp(rng.uniform(np.log(18), np.log(64))), rng)
        h, w = alpha.shape
        for _ in range(20):  # tries to find a place; a digit without one is left out
            x, y = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
            if taken[y:y + h, x:x + w].mean() < 0.06:  # a mild overlap at most
                break
        else:
            continue
        taken[y:y + h, x:x + w] = True
        patch = image[y:y + h, x:x + w]
        level = patch.mean()
        contrast = rng.uniform(80, 160) * (1 if level < 127 else -1)
        color = level + contrast + rng.uniform(-30, 30, 3)
        opacity = alpha[..., None] * rng.uniform(0.8, 1)
        patch += opacity * (color - patch)
        objects.append((int(labels[index]), (int(x), int(y), w, h)))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), objects


def make_split(folder: Path, name: str, count: int, indices: np.ndarray, seed: int) -> None:
    """Write ``count`` scenes to ``folder/name/`` and their COCO annotations to ``folder/name.json``."""
    digits = load_digits()
    samples, labels = digits.images[indices] / 16, digits.target[indices]
    coco = dict(images=[], annotations=[], categories=[dict(id=i + 1, name=str(i)) for i in range(10)])
    (folder / name).mkdir()
    print(f'{name}: {count} scenes', flush=True)
    progress = ProgressBar(count)
    for number in range(count):
        # A generator of its own makes a scene independent of how many stand before it.
        image, objects = draw_scene(samples, labels, np.random.default_rng((seed, SPLITS.index(name), number)))
        file = f'{number:05d}.png'
        cv2.imwrite(str(folder / name / file), image)
        coco['images'].append(dict(id=number, file_name=file, height=image.shape[0], width=image.shape[1]))
        for label, (x, y, w, h) in objects:
            coco['annotations'].append(
                dict(id=len(coco['annotations']) + 1, image_id=number, category_id=label + 1, bbox=[x, y, w, h],
                     area=w * h, iscrowd=0))
        if (number + 1) % 50 == 0 or number + 1 == count:  # rarely, so that a log file stays readable
            progress.update(number % 50 + 1)
    print(flush=True)
    (folder / f'{name}.json').write_text(json.dumps(coco))


def make_digits(out, train: int = 1200, val: int = 100, test: int = 120, seed: int = 0) -> bool:
    """Write the data set to ``out``, all or nothing.

    Args:
        out: The folder to make. One made before with other parameters is replaced; any other folder is left alone.
        train, val, test: Number of scenes.
        seed: The same seed gives the same bytes.

    Returns:
        False if ``out`` already holds exactly this data set and nothing was done.

    Raises:
        FileExistsError: ``out`` holds something that this function did not write.
    """
    out = Path(os.path.abspath(out))
    wanted = dict(version=VERSION, train=train, val=val, test=test, seed=seed)
    done = out / 'done.json'
    if done.is_file() and json.loads(done.read_text()) == wanted:
        return False
    if out.exists() and not done.is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f'{out} exists and was not made by this tool; name another folder or remove it first')
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{out.name}-', dir=out.parent) as scratch:
        fresh = Path(scratch, 'new')
        fresh.mkdir()
        for name, indices in split_samples(seed).items():
            make_split(fresh, name, wanted[name], indices, seed)
        (fresh / 'done.json').write_text(json.dumps(wanted))
        if out.exists():
            shutil.move(out, Path(scratch, 'old'))
        os.rename(fresh, out)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', help='folder to make, for the configs here: data/digits')
    for name, default in dict(train=1200, val=100, test=120).items():
        parser.add_argument(f'--{name}', type=int, default=default, help=f'number of {name} scenes ({default})')
    parser.add_argument('--seed', type=int, default=0, help='the same seed gives the same bytes (0)')
    try:
        made = make_digits(**vars(parser.parse_args()))
    except FileExistsError as error:
        parser.error(str(error))
    print('done' if made else 'already complete, nothing to do')


if __name__ == '__main__':
    main()
