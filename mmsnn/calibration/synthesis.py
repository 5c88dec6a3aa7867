"""Calibration images without data: inputs under which a network's batch normalisations see what they saw in training.

Section 5.7 of the paper, after DeepInversion [Yin et al., CVPR 2020]: the images are found by gradient descent.
"""
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..progress import Bar, progress_bar


@torch.inference_mode(False)  # the images are found by gradients
def synthesise(ann: nn.Module, num_images: int, size: tuple[int, int], *, channels: int = 3, batch_size: int = 64,
               iterations: int = 500, learning_rate: float = .1, smoothness: float = 1e-2, class_weight: float = .1,
               seed: int = 0, progress: bool = True) -> list[Tensor]:
    """Synthesise preprocessed images from the statistics that a trained network holds.

    Minimises, over the images x, with m and v the mean and variance of each batch normalisation's input over images
    and positions, and M and V those it was trained with::

        mean over layers [ mean_c (m - M)**2 / V + mean_c (v / V - 1)**2 ]  +  smoothness * mean |differences of pixels|
        +  class_weight * cross entropy with classes drawn at random (where the network returns class scores)

    Args:
        ann: a network with batch normalisation, such as a backbone or classifier. It is left untouched.
        num_images: how many, any number.
        size: (H, W) of the images.
        channels: of the images.
        batch_size: images optimised together; the statistics are matched per batch, so not too few.
        iterations, learning_rate: of Adam, decaying along a cosine.
        smoothness, class_weight: see above.
        seed: of the noise that the images start from, and of the classes.
        progress: show a progress bar.

    Returns:
        Batches (batch_size, channels, H, W), as :func:`mmsnn.calibrate` takes them; the last may be smaller.

    Raises:
        ValueError: the network has no batch normalisation with running statistics.
    """
    norms = [m for m in ann.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        raise ValueError(f'{type(ann).__name__} has no batch normalisation whose statistics images could be '
                         'synthesised from: calibrate on real images')
    parameter = next(ann.parameters())
    generator = torch.Generator().manual_seed(seed)
    batches = []
    bar = progress_bar(total=-(-num_images // batch_size) * iterations, desc='synthesis', disable=not progress)
    with _frozen(ann), bar:
        for start in range(0, num_images, batch_size):
            count = min(batch_size, num_images - start)
            noise = torch.randn(count, channels, *size, generator=generator)
            classes = torch.rand(count, generator=generator)
            batches.append(_optimise(ann, norms, noise.to(parameter), classes.to(parameter), iterations,
                                     learning_rate, smoothness, class_weight, bar))
    return batches


def _optimise(ann: nn.Module, norms: list[_BatchNorm], images: Tensor, classes: Tensor, iterations: int,
              learning_rate: float, smoothness: float, class_weight: float, bar: Bar) -> Tensor:
    images.requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        with torch.enable_grad(), _mismatches(norms) as mismatches:
            scores = ann(images)
            loss = torch.stack(mismatches).mean() + smoothness * _roughness(images)
            if isinstance(scores, Tensor) and scores.ndim == 2:
                labels = (classes * scores.shape[1]).long()
                loss = loss + class_weight * F.cross_entropy(scores, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.update()
        bar.set_postfix(loss=f'{float(loss.detach()):.3f}', refresh=False)
    return images.detach()


@contextmanager
def _mismatches(norms: list[_BatchNorm]) -> Iterator[list[Tensor]]:
    """Collect, during a forward pass, how far the input of each batch normalisation is from its statistics."""
    found: list[Tensor] = []

    def compare(norm: _BatchNorm, inputs: tuple) -> None:
        values = inputs[0].movedim(1, 0).flatten(1)
        assert norm.running_var is not None
        variance = norm.running_var + norm.eps
        found.append(((values.mean(1) - norm.running_mean).square() / variance).mean()
                     + (values.var(1, unbiased=False) / variance - 1).square().mean())

    handles = [norm.register_forward_pre_hook(compare) for norm in norms]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _frozen(ann: nn.Module) -> Iterator[None]:
    """Keep a network in evaluation mode and its parameters without gradients, and restore both."""
    training = {module: module.training for module in ann.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in ann.parameters()}
    try:
        for module in training:
            module.training = False
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for parameter, mode in wanted.items():
            parameter.requires_grad_(mode)


def _roughness(images: Tensor) -> Tensor:
    """Mean absolute difference between neighbouring pixels."""
    return images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()
