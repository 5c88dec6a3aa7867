"""Detections on a picture: which are right, which are wrong, and what was missed."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np

IOU = .5  # a detection is right where it overlaps a box of its class that much, and no better one does
WIDTHS = 420, 900  # pixels that a picture has at least and at most when boxes are drawn
COLORS = dict(truth='#ffffff', found='#ffd84d', right='#27c46a', wrong='#ff4d4d', missed='#ff9f1a')
DARK = '#101318'


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (N, 4) and (M, 4), as left, top, right and bottom: (N, M)."""
    top_left = np.maximum(boxes[:, None, :2], others[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (bottom_right - top_left).clip(min=0).prod(2)
    areas = [(each[:, 2:] - each[:, :2]).prod(1) for each in (boxes, others)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)


def verdicts(found: dict, truth: dict) -> tuple[list[bool], list[bool]]:
    """Compare detections with the boxes that should be found, the most certain detection first.

    Args:
        found: ``bboxes``, ``labels`` and ``scores``.
        truth: ``bboxes`` and ``labels``.

    Returns:
        Which detections are right, and which of the boxes were missed.
    """
    boxes, others = (np.array(each['bboxes'], float).reshape(-1, 4) for each in (found, truth))
    fit = overlaps(boxes, others)
    fit[np.array(found['labels'])[:, None] != np.array(truth['labels'])[None]] = 0.
    right, missed = [False] * len(boxes), [True] * len(others)
    for index in sorted(range(len(boxes)), key=lambda index: -found['scores'][index]):
        best = max((other for other in range(len(others)) if missed[other]), key=lambda other: fit[index, other],
                   default=None)
        if best is not None and fit[index, best] >= IOU:
            right[index], missed[best] = True, False
    return right, missed


def draw_detections(image: np.ndarray, found: dict | None, truth: dict | None, classes: Sequence[str]) -> np.ndarray:
    """Draw boxes with their classes, and scores in %, onto a picture, which is enlarged or reduced to WIDTHS first.

    Args:
        image: RGB, (H, W, 3) uint8.
        found: detections, as for :func:`verdicts`, perhaps with ``masks``, (N, H, W) bool; or None to draw the truth.
        truth: what should be found, or None where nobody knows.
        classes: their names.

    Returns:
        The picture, RGB: what is right, what is wrong, and dashed what was missed, in :data:`COLORS`.
    """
    from PIL import Image, ImageColor, ImageDraw
    kinds: list[str] = []
    missed: list[bool] = []
    if found is not None and truth is not None:
        right, missed = verdicts(found, truth)
        kinds = ['right' if verdict else 'wrong' for verdict in right]
    elif found is not None:
        kinds = ['found'] * len(found['labels'])
    image = image.copy()
    for kind, mask in zip(kinds, (found or {}).get('masks', ())):
        image[mask] = (.6 * image[mask] + .4 * np.array(ImageColor.getrgb(COLORS[kind]))).astype(np.uint8)
    picture = Image.fromarray(image)
    scale = min(max(picture.width, WIDTHS[0]), WIDTHS[1]) / picture.width
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)),
                             Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    entries: list[tuple] = []  # kind, box, text; what is written last lies on top
    if truth is not None:
        entries = [('truth' if found is None else 'missed', box, classes[label] + ' missed' * (found is not None))
                   for number, (box, label) in enumerate(zip(truth['bboxes'], truth['labels']))
                   if found is None or missed[number]]
    if found is not None:
        entries += [(kind, box, f'{classes[label]} {100 * score:.0f}') for kind, box, label, score in sorted(
            zip(kinds, found['bboxes'], found['labels'], found['scores']), key=lambda entry: entry[3])]
    draw = ImageDraw.Draw(picture)
    entries = [(kind, [float(side) * scale for side in box], text) for kind, box, text in entries]
    for kind, box, _ in entries:
        draw_box(draw, box, COLORS[kind], dashed=kind == 'missed', size=picture.size)
    taken: list[tuple[float, ...]] = []
    for kind, box, text in reversed(entries):  # the most certain has the first choice of a place
        taken.append(draw_label(draw, box, text, COLORS[kind], picture.size, taken, below=kind == 'missed'))
    return np.asarray(picture)


def draw_box(draw, box: list[float], color: str, dashed: bool, size: tuple[int, int]) -> None:
    """Draw a box with a dark rim, which shows on any ground."""
    width = max(3, round(size[0] / 190))
    left, top, right, bottom = (max(0., min(side, limit - 1)) for side, limit in zip(box, size * 2))
    corners = (left, top), (right, top), (right, bottom), (left, bottom)
    lines = []
    for (x, y), (to_x, to_y) in zip(corners, (*corners[1:], corners[0])):
        pieces = max(1, round(max(abs(to_x - x), abs(to_y - y)) / (4 * width))) if dashed else 1
        for piece in range(pieces):
            start, end = piece / pieces, (piece + (.55 if dashed else 1)) / pieces
            lines.append([x + start * (to_x - x), y + start * (to_y - y), x + end * (to_x - x), y + end * (to_y - y)])
    for fill, more in ((DARK, 2), (color, 0)):
        for line in lines:
            draw.line(line, fill=fill, width=width + more)


def draw_label(draw, box: list[float], text: str, color: str, size: tuple[int, int],
               taken: list[tuple[float, ...]], below: bool) -> tuple[float, ...]:
    """Write above or below a box, or within, where the least of other labels is covered; return the place."""
    font = label_font(max(17, round(size[0] / 32)))
    _, _, wide, high = draw.textbbox((0, 0), text, font=font)
    wide, high = wide + 6, high + 5
    left, top, right, bottom = box
    places: list[tuple[float, bool, int, float, float]] = []
    outside = [top - high - 1, bottom + 2]
    for y in [*(reversed(outside) if below else outside), top + 4, bottom - high - 3]:
        for x in (left, right - wide):
            x, shown = max(0., min(x, size[0] - wide)), max(0., min(y, size[1] - high))
            cost = sum(shared(place, (x, shown, x + wide, shown + high)) for place in taken)
            places.append((cost, shown != y, len(places), x, shown))  # outside the picture there is no room
    *_, x, y = min(places)
    draw.rectangle([x, y, x + wide, y + high], fill=DARK)
    draw.text((x + 3, y + 1), text, fill=color, font=font)
    return x, y, x + wide, y + high


def shared(place: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Area that two rectangles have in common."""
    wide, high = (min(place[side + 2], other[side + 2]) - max(place[side], other[side]) for side in (0, 1))
    return max(0., wide) * max(0., high)


def label_font(size: int):
    """The font that matplotlib brings along, for pictures that look alike everywhere."""
    import matplotlib
    from PIL import ImageFont
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans-Bold.ttf')), size)
