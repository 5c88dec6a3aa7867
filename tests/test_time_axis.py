"""Time is an axis that a network's operations cannot see, whatever they do with dimension 0 and with batch sizes."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip('hypothesis')

from hypothesis import given, settings
from hypothesis import strategies as st

import mmsnn
from mmsnn.simulation.folding import BROADCAST, EACH_STEP, MERGED, folding_of

from networks import Naive, leaves

T = 4
profile = settings(max_examples=20, derandomize=True, deadline=None, database=None)

def gram(x):
    """How alike images are, (N, N)."""
    return x.flatten(1) @ x.flatten(1).t() * .01


# Affine operations on (N, C, H, W), whatever N, that keep C, H and W; each is right only for the values of one step.
ON_DIMENSION_0 = {
    'flip': lambda y, x: y.flip(0), 'roll': lambda y, x: torch.roll(y, 1, 0),
    'sum': lambda y, x: y + y.sum(0, keepdim=True), 'mean': lambda y, x: y - y.mean(0, keepdim=True),
    'mean of all': lambda y, x: y + y.mean(), 'first': lambda y, x: y + y[0], 'last': lambda y, x: y - y[-1:],
    'slice': lambda y, x: torch.cat([y[1:], y[:1]]), 'cat': lambda y, x: torch.cat([y, y])[:x.size(0)],
    'chunk': lambda y, x: torch.cat(torch.chunk(y, 2)[::-1]), 'unbind': lambda y, x: torch.stack(
        [y[i] for i in range(1)]).expand(1, -1, -1, -1) + y,
    'view with a size of the input': lambda y, x: y.view(x.size(0), -1).view(x.size(0), 4, 6, 6),
    'view with its own size': lambda y, x: y.reshape(y.size(0) * 4, -1).reshape(y.shape),
    'sequence first': lambda y, x: y.flatten(2).permute(2, 0, 1).flip(2).permute(1, 2, 0).reshape(x.size(0), 4, 6, 6),
    'transposed': lambda y, x: y.transpose(0, 1).flip(1).transpose(0, 1),
    'squeezed': lambda y, x: y.squeeze().reshape(x.shape[0], 4, 6, 6),
    'scaled by a number of each image': lambda y, x: y * x[:, :1].mean((2, 3), keepdim=True),
    'added the image': lambda y, x: y + x[:, :1], 'padded': lambda y, x: F.pad(y, (0, 0, 0, 0, 0, 0, 1, 0))[1:],
    'narrow': lambda y, x: torch.narrow(y, 0, 0, 1) + y, 'repeat': lambda y, x: y.repeat(2, 1, 1, 1)[:x.size(0)],
    'matmul': lambda y, x: (gram(x) @ y.flatten(1)).view(y.shape),
    'linear over images': lambda y, x: F.linear(y.permute(1, 2, 3, 0), gram(x)).permute(3, 0, 1, 2),
    'interpolated': lambda y, x: F.interpolate(y, scale_factor=2)[..., ::2, ::2],
    'max pooling over images': lambda y, x: F.max_pool2d(y.permute(1, 2, 3, 0).flatten(1, 2), (2, 1), 1).permute(
        2, 0, 1)[:, :, :1, None] + y,
}


class Around(nn.Module):
    """A spiking layer, operations on its output, and another spiking layer; channels may be mixed in between."""

    def __init__(self, operations):
        super().__init__()
        self.a, self.b, self.operations = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), operations

    def forward(self, x):
        y = torch.relu(self.a(x))
        for operation in self.operations:
            y = operation(y, x)
        return torch.relu(self.b(y))


@profile
@given(st.lists(st.sampled_from(sorted(ON_DIMENSION_0)), min_size=1, max_size=3), st.integers(1, 4), st.integers(1, T),
       st.integers(0, 2 ** 16))
def test_whatever_happens_to_dimension_0_happens_within_a_step(names, batch, chunk_steps, seed):
    torch.manual_seed(seed)
    ann = Around([ON_DIMENSION_0[name] for name in names]).eval()
    x = torch.randn(batch, 3, 8, 8)
    try:
        ann(x)
    except RuntimeError:
        return  # more than this network can do with so many images, such as halving one
    snn = mmsnn.convert(ann, T, chunk_steps=chunk_steps)
    mmsnn.calibrate(snn, [x], 'signed', progress=False)
    (sums, ) = Naive(snn)(x).values()
    # Sums in another order move a spike now and then; time mixed with images moves everything.
    different = ((snn(x) - next(iter(sums.values())) / T).abs() > 1e-4).float().mean()
    assert different < .02, names


@pytest.mark.parametrize('name', ['flip', 'chunk', 'view with a size of the input', 'sequence first'])
def test_compiled_and_calibrated_alike(name):
    ann, x = Around([ON_DIMENSION_0[name]]).eval(), torch.randn(4, 3, 8, 8)
    plain, single = (mmsnn.convert(ann, T, chunk_steps=steps) for steps in (T, 1))
    for snn in (plain, single):
        mmsnn.calibrate(snn, [x], 'light', progress=False)
    for (key, value), other in zip(plain.state_dict().items(), single.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-3, msg=key)
    fast = mmsnn.convert(ann, T, compile=True)
    fast.load_state_dict(plain.state_dict())
    assert ((fast(x) - plain(x)).abs() > 1e-4).float().mean() < .02


def test_clips_of_video_and_paired_images():
    class Clips(nn.Module):
        """(N, T, C, H, W): frames folded into the batch, and averaged behind the network."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, clips):
            n, t, c, h, w = clips.shape
            y = torch.relu(self.a(clips.view(n * t, c, h, w))).mean((2, 3))
            return self.b(y).view(n, t, -1).mean(1)

    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            one, other = torch.relu(self.a(x)).mean((2, 3)).chunk(2)
            return one - other

    for ann, x in ((Clips(), torch.randn(2, 3, 3, 8, 8)), (Pairs(), torch.randn(6, 3, 8, 8))):
        snn = mmsnn.convert(ann.eval(), 64)
        mmsnn.calibrate(snn, [x], 'signed', progress=False)
        torch.testing.assert_close(snn(x), ann(x), rtol=.02, atol=.02)


def test_what_is_computed_for_several_steps_at_once():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.pool = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.AvgPool2d(2)

        def forward(self, x):
            y = torch.relu(self.a(x))
            z = self.b(y) + y
            z = self.pool(z)[:, :, ::2, ::2]
            return torch.cat([z, z.flip(0)], 1).mean((2, 3)), z.flatten(1), z.unsqueeze(1), z.sum()

    snn = mmsnn.convert(Mixed().eval(), 2)
    plan = snn.plan
    dimensions = {node: len(shape) for node, shape in plan.shapes(snn.bind(torch.zeros(2, 3, 12, 12))).items()}
    found = {node.name: folding_of(node, plan.varies, dimensions) for node in plan.varying
             if not node.name.startswith('neurons')}
    assert found == dict(b=MERGED, add=BROADCAST, pool=MERGED, getitem=MERGED, flip=EACH_STEP, cat=MERGED, mean=MERGED,
                         flatten=MERGED, unsqueeze=EACH_STEP, sum_1=EACH_STEP)


def test_a_convolution_of_an_image_without_a_batch_keeps_its_channels():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)

        def forward(self, x):
            return torch.relu(self.b(torch.relu(self.a(x))[0]))

    ann, x = Single().eval(), torch.randn(1, 3, 8, 8)
    snn = mmsnn.convert(ann, 64, chunk_steps=8)
    mmsnn.calibrate(snn, [x], 'signed', progress=False, potential=None)
    torch.testing.assert_close(snn(x), ann(x), rtol=.05, atol=.05)



def test_values_that_are_no_tensors_pass_between_operations():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            low, high = torch.relu(self.a(x)).split(2, 1)
            return low + high.size(0), high

    ann, x = Parts().eval(), torch.randn(3, 3, 8, 8)
    snn = mmsnn.convert(ann, 64, chunk_steps=8)
    mmsnn.calibrate(snn, [x], 'signed', progress=False)
    for value, expected in zip(leaves(snn(x)), leaves(ann(x)), strict=True):
        torch.testing.assert_close(value, expected, rtol=.02, atol=.02)


@pytest.mark.parametrize('dimensions, layout', [(2, torch.channels_last), (3, torch.channels_last_3d)])
def test_a_layout_in_memory_belongs_to_the_maps_of_one_step(dimensions, layout):
    conv = getattr(nn, f'Conv{dimensions}d')

    class Arranged(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(3, 4, 3, padding=1), conv(4, 2, 1)

        def forward(self, x):
            return self.b(torch.relu(self.a(x)).contiguous(memory_format=layout).clone(memory_format=layout))

    ann, x = Arranged().eval(), torch.randn(2, 3, *[6] * dimensions)
    snn = mmsnn.convert(ann, 64)
    mmsnn.calibrate(snn, [x], progress=False)
    output = snn(x)
    assert (output - ann(x)).norm() < .05 * ann(x).norm()
    half = mmsnn.convert(ann, 64, dtype='bfloat16')  # keeps maps of four dimensions channels last, and others not
    half.load_state_dict(snn.state_dict())
    assert (half(x) - output).norm() < .05 * output.norm()
