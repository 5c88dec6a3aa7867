"""Another tool's conversion beside ours: the same trained network, images, time steps and levels a step.

Runs where that tool is installed, as it is for development. ``pytest -s`` shows the numbers.
"""
import pytest
import torch
from torch import nn

import mmsnn

datasets = pytest.importorskip('sklearn.datasets')
ann2snn = pytest.importorskip('spikingjelly.activation_based.ann2snn')
functional = pytest.importorskip('spikingjelly.activation_based.functional')
TIME_STEPS = 4, 8, 16
MODES = 'max', '99.9%'  # the largest activation, a percentile


def layer(channels, out, stride=1):
    return nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()


@pytest.fixture(scope='module')
def digits():
    """A trained network, images to calibrate on, and images and classes to test on: scikit-learn's written digits."""
    torch.manual_seed(0)
    data = datasets.load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    classes = torch.tensor(data.target)
    order = torch.randperm(len(images))
    train, test = order[:1000], order[-400:]
    ann = nn.Sequential(*layer(1, 16), *layer(16, 16), *layer(16, 32, 2), *layer(32, 32), *layer(32, 32),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(ann.parameters(), .1, momentum=.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, .1, total_steps=12 * 20)
    for _ in range(12):
        for some in train[torch.randperm(len(train))].split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(ann(images[some]), classes[some]).backward()
            optimizer.step()
            schedule.step()
    return ann.eval().requires_grad_(False), images[train[:128]].split(32), images[test], classes[test]


def theirs(ann, batches, mode, x):
    """The sums of what SpikingJelly's conversion puts out, after each number of steps."""
    recipe = ann2snn.RateCodingRecipe([torch.cat(batches)], mode=mode)
    snn = ann2snn.FXConverter(recipe).convert(torch.fx.symbolic_trace(ann)).eval()
    functional.reset_net(snn)
    functional.set_step_mode(snn, 's')
    with torch.no_grad():
        return torch.stack([snn(x) for _ in range(max(TIME_STEPS))]).cumsum(0)[[t - 1 for t in TIME_STEPS]]


def ours(ann, batches, pipeline, time_steps, x, **options):
    snn = mmsnn.convert(ann, time_steps)
    mmsnn.calibrate(snn, batches, pipeline, progress=False, **options)
    assert {neuron.rule.values for neuron in snn.neurons.values()} == {2}
    return snn(x)


def test_binary_spikes_keep_more_than_spikingjellys(digits):
    ann, batches, x, classes = digits

    def score(scores):
        return 100 * float((scores.argmax(1) == classes).float().mean())

    rows = {f'SpikingJelly, {mode}': [score(sums) for sums in theirs(ann, batches, mode, x)] for mode in MODES}
    best = [max(column) for column in zip(*rows.values())]
    for pipeline in ('none', 'light', 'potential'):
        rows[pipeline] = [score(ours(ann, batches, pipeline, steps, x)) for steps in TIME_STEPS]
    print(f'\nANN {score(ann(x)):.2f} %, T = {TIME_STEPS}', *(
        f'{name}: {", ".join(f"{value:.2f}" for value in values)}' for name, values in rows.items()), sep='\n')
    assert score(ann(x)) > 97
    for pipeline in ('light', 'potential'):
        assert all(own > other + 5 for own, other in zip(rows[pipeline][:2], best)), 'few steps are where it matters'
        assert rows[pipeline][2] > score(ann(x)) - 1
