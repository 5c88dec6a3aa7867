"""Differential coding: any function of one value becomes neurons, what mixes values stays graded between neurons."""
import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmsnn
from mmsnn.analysis.cost import CostCounter
from mmsnn.simulation.firing import TILE
from mmsnn.simulation.operations import is_max_pool, module_of, objection, reads_shape
from mmsnn.simulation.plan import is_neuron
from mmsnn.simulation.weighted import has_weights

T = 8


class Net(nn.Module):
    """Convolutions and a classifier, with ``f`` where activations stand."""

    def __init__(self, f, modules=()):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head, self.own = nn.Linear(8, 5), nn.ModuleList(modules)
        self.beta = nn.Parameter(torch.tensor(1.3))
        self.f = f

    def forward(self, x):
        x = self.f(self, self.first(x))
        x = self.f(self, self.second(x))
        return self.head(x.mean((2, 3)))


def images(count=8, size=12):
    return torch.randn(count, 3, size, size)


@torch.no_grad()
def converted(ann, x, **options):
    snn = mmsnn.convert(ann, T, coding='differential', **options)
    mmsnn.calibrate(snn, [x], 'differential', sizes=6, progress=False)
    return snn


@torch.no_grad()
def errors(snn, ann, x):
    """Squared errors after each step, relative to the squared output."""
    expected = torch.utils._pytree.tree_leaves(ann(x))[-1]
    outputs = [torch.utils._pytree.tree_leaves(output)[-1] for output in snn.anytime(range(1, T + 1), x).values()]
    return [((output - expected).square().sum() / expected.square().sum()).item() for output in outputs]


def check(snn, ann, x):
    """Within 1 % of the ANN in the end; on the way errors fall geometrically until rounding is all that is left."""
    found = errors(snn, ann, x)
    assert found[-1] < .01, found
    for before, after in zip(found, found[1:]):
        assert after < before / 3 or after < 4 * found[-1], found
    for node in snn.graph.nodes:
        if has_weights(module_of(node)):
            assert sees_spikes(snn, node.args[0]), node


def varying(snn):
    return {node for node in snn.graph.nodes if node.op != 'get_attr'}


def sees_spikes(snn, value):
    """Whether a value comes from neurons, or from the image, through what is affine and has no weights, or pools."""
    if is_neuron(value) or value.op in ('placeholder', 'get_attr'):
        return True
    if has_weights(module_of(value)) or not (is_max_pool(value) or objection(value, varying(snn)) is None):
        return False
    return all(reads_shape(source) or sees_spikes(snn, source) for source in value.all_input_nodes)


SPELLINGS = {
    'relu': (nn.ReLU(), F.relu, torch.relu, lambda x: x.relu(), lambda x: x.clamp(min=0)),
    'relu6': (nn.ReLU6(), F.relu6, lambda x: x.clamp(0, 6), lambda x: F.hardtanh(x, 0., 6.)),
    'clamp': (nn.Hardtanh(-.5, .8), lambda x: x.clamp(-.5, .8), lambda x: torch.clip(x, -.5, .8),
              lambda x: F.hardtanh(x, -.5, .8), lambda x: x.clip(min=-.5).minimum(torch.full((), .8))),
    'leaky': (nn.LeakyReLU(.2), lambda x: F.leaky_relu(x, .2), lambda x: torch.where(x > 0, x, .2 * x),
              lambda x: torch.maximum(x, .2 * x)),
    'prelu': (nn.PReLU(8), lambda x: F.prelu(x, torch.tensor([.25]))),
    'elu': (nn.ELU(), F.elu), 'selu': (nn.SELU(), F.selu, torch.selu), 'celu': (nn.CELU(2.), lambda x: F.celu(x, 2.)),
    'silu': (nn.SiLU(), F.silu, lambda x: x * torch.sigmoid(x), lambda x: x.sigmoid() * x,
             lambda x: x / (1 + torch.exp(-x))),
    'gelu': (nn.GELU(), F.gelu, lambda x: .5 * x * (1 + torch.erf(x * .5 ** .5))),
    'gelu tanh': (nn.GELU('tanh'), lambda x: F.gelu(x, approximate='tanh'),
                  lambda x: .5 * x * (1 + torch.tanh((2 / torch.pi) ** .5 * (x + .044715 * x ** 3)))),
    'hardswish': (nn.Hardswish(), F.hardswish, lambda x: x * F.relu6(x + 3) / 6),
    'hardsigmoid': (nn.Hardsigmoid(), F.hardsigmoid, lambda x: F.relu6(x + 3) / 6),
    'sigmoid': (nn.Sigmoid(), torch.sigmoid, lambda x: x.sigmoid(), lambda x: 1 / (1 + (-x).exp())),
    'tanh': (nn.Tanh(), torch.tanh, lambda x: x.tanh()),
    'softplus': (nn.Softplus(), F.softplus, lambda x: torch.log(1 + x.exp())),
    'mish': (nn.Mish(), F.mish, lambda x: x * F.softplus(x).tanh()),
    'logsigmoid': (nn.LogSigmoid(), F.logsigmoid), 'softsign': (nn.Softsign(), F.softsign, lambda x: x / (1 + x.abs())),
    'rrelu': (nn.RReLU(), ), 'hardshrink': (nn.Hardshrink(.1), ), 'softshrink': (nn.Softshrink(.1), F.softshrink),
    'squared relu': (lambda x: F.relu(x) ** 2, lambda x: x.relu().square(), lambda x: F.relu(x) * x),
}


@pytest.mark.parametrize('name', SPELLINGS)
def test_activations_are_neurons_in_every_spelling(name):
    x = images()
    for spelling in SPELLINGS[name]:
        own = isinstance(spelling, nn.Module)
        ann = Net((lambda net, y: net.own[0](y)) if own else lambda net, y, f=spelling: f(y), [spelling] * own).eval()
        snn = converted(ann, x)
        assert len(snn.neurons) == 2 and not snn.graded, spelling
        check(snn, ann, x)


def test_a_learned_slope_belongs_to_the_neurons():
    ann, x = Net(lambda net, y: y * torch.sigmoid(net.beta * y)), images()
    snn = converted(ann, x)
    assert list(snn.neurons) == ['mul_1', 'mul_3'] and not snn.graded
    assert any(key.endswith('neurons.mul_1.activation.beta') for key in snn.state_dict())
    check(snn, ann, x)


def test_slopes_by_channel_on_maps_of_any_size():
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv2d(3, 32, 3), nn.PReLU(32), nn.Conv2d(32, 4, 1)).eval()
    ann[1].weight.data.uniform_(-.5, .5)
    x = torch.randn(2, 3, 66, 66)  # larger than a tile
    assert 2 * 32 * 64 * 64 > TILE
    snn = converted(ann, x)
    together = snn(x)
    # Not to the last bit: a sum in another order may round to another spike.
    apart = torch.cat([snn(x[:1]), snn(x[1:])])
    assert (apart - together).norm() < 1e-2 * together.norm()
    assert (together - ann(x)).norm() < .05 * ann(x).norm()


def test_an_activation_of_an_activation_that_others_read_too():
    class Chain(Net):
        def forward(self, x):
            y = torch.tanh(self.first(x))
            z = F.relu6(y)
            return self.second(y + z), self.second(z.clamp(0, .5)), self.second(z)

    x, ann = images(), Chain(None).eval()
    snn = converted(ann, x)
    assert len(snn.neurons) == 3
    for output, expected in zip(snn(x), ann(x)):
        assert (output - expected).norm() < .05 * expected.norm()


def test_what_is_used_elsewhere_does_not_vanish_in_neurons():
    def gated(net, y):
        gate = torch.sigmoid(y)
        return y * gate + gate

    ann, x = Net(gated), images()
    snn = converted(ann, x)
    assert [name for name in snn.neurons if name.startswith('sigmoid')] == ['sigmoid', 'sigmoid_1']
    assert snn.graded == ['mul', 'mul_1']
    check(snn, ann, x)


GRADED = {
    'group norm': (1, lambda net, y: F.silu(net.own[0](y)), nn.GroupNorm(2, 8)),
    'group norm function': (1, lambda net, y: F.relu(F.group_norm(y, 4))),
    'instance norm': (1, lambda net, y: F.relu(net.own[0](y)), nn.InstanceNorm2d(8)),
    'layer norm': (1, lambda net, y: F.gelu(net.own[0](y.permute(0, 2, 3, 1))).permute(0, 3, 1, 2), nn.LayerNorm(8)),
    'layer norm by hand': (3, lambda net, y: F.relu((y - y.mean(1, True)) / (y.var(1, keepdim=True) + 1e-5).sqrt())),
    'batch statistics': (1, lambda net, y: F.relu(net.own[0](y)), nn.BatchNorm2d(8, track_running_stats=False)),
    'softmax': (1, lambda net, y: y.softmax(1)), 'softmax module': (1, lambda net, y: net.own[0](y), nn.Softmax(1)),
    'softmax by hand': (3, lambda net, y: (lambda e: e / e.sum(1, True))((y - y.amax(1, True)).exp())),
    'L2': (1, lambda net, y: F.normalize(y, dim=1)),
    'L2 by hand': (3, lambda net, y: y / y.pow(2).sum(1, True).sqrt()),
    'squeeze and excitation': (1, lambda net, y: y.relu() * torch.sigmoid(net.own[1](net.own[0](
        y.mean((2, 3), True)).relu())), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)),
    'GLU': (1, lambda net, y: F.glu(torch.cat([y, y.flip(1)], 1), 1)),
    'logsumexp': (1, lambda net, y: y - torch.logsumexp(y, 1, True)),
    'maximum of two': (1, lambda net, y: torch.maximum(y, y.roll(1, 1))),
    'standard deviation': (2, lambda net, y: y / y.std((2, 3), keepdim=True)),
}


@pytest.mark.parametrize('name', GRADED)
def test_what_mixes_values_stays_between_neurons(name):
    units, f, *modules = GRADED[name]
    ann, x = Net(f, modules), images()
    snn = converted(ann, x)
    assert len(snn.graded) == 2 * units and all(node.name in snn.graded for node in snn.graph.nodes
                                                if objection(node, varying(snn)) and not is_neuron(node))
    check(snn, ann, x)


class Attention(nn.Module):
    """A token, positions, norm and attention of two heads, spelt out or in torch's own words."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.embed, self.norm = nn.Conv2d(3, 16, 3, 3), nn.LayerNorm(16)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.layer = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, activation='gelu'), 2)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        y = self.norm(x)
        if self.form == 'layer':
            return self.layer(y.transpose(0, 1)).transpose(0, 1)
        if self.form == 'module':
            return x + self.attention(y, y, y)[0]
        q, k, v = self.qkv(y).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v) if self.form == 'function' else (
            q @ k.transpose(-2, -1) * 8 ** -.5).softmax(-1) @ v
        return (x + self.out(y.transpose(1, 2).flatten(2)))[:, 0]


@pytest.mark.parametrize('form, identities', [('by hand', 2), ('function', 2), ('module', 2), ('layer', 6)])
def test_attention(form, identities):
    ann, x = Attention(form).eval(), images()
    snn = converted(ann, x)
    assert sum(name.endswith('identity') for name in snn.neurons) == identities
    assert {neuron.channel_axis for neuron in snn.neurons.values()} == {-1}
    assert all(neuron.threshold.shape in ((16,), (32,)) for neuron in snn.neurons.values())
    check(snn, ann, x)


def test_one_identity_neuron_for_all_that_read_a_value():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(inputs, 4, 3, padding=1) for inputs in (3, 4, 4))

        def forward(self, x):
            x = self.a(x)
            return self.b(x) + self.c(x) + x

    ann, x = Twice(), images()
    snn = converted(ann, x)
    assert list(snn.neurons) == ['a_identity']
    check(snn, ann, x)


@pytest.mark.parametrize('name', ['silu', 'group norm', 'layer norm', 'softmax', 'attention'])
def test_plain_and_single_steps_alike(name):
    ann, x = network(name), images(4)
    state = converted(ann, x).state_dict()
    outputs = []
    for steps in (1, 3, T):
        snn = mmsnn.convert(ann, T, coding='differential', chunk_steps=steps)
        snn.load_state_dict(state)
        outputs.append(snn(x))
    for output in outputs[1:]:  # sums in another order may round a spike another way
        assert (output - outputs[0]).square().sum() < 1e-4 * outputs[0].square().sum()


def network(name):
    if name == 'attention':
        return Attention('by hand').eval()
    return Net(*(GRADED[name][1], GRADED[name][2:]) if name in GRADED else [lambda net, y: F.silu(y)]).eval()


@pytest.mark.parametrize('name', ['silu', 'attention'])
def test_compiled_alike(name):
    ann, x = network(name), images(4)
    snn, fast = converted(ann, x), mmsnn.convert(ann, T, coding='differential', compile=True)
    fast.load_state_dict(snn.state_dict())
    assert (fast(x) - snn(x)).square().sum() < 1e-3 * snn(x).square().sum()


def test_state_loads_and_serves_any_number_of_steps(tmp_path):
    ann, x = Net(GRADED['squeeze and excitation'][1], GRADED['squeeze and excitation'][2:]), images()
    snn = converted(ann, x)
    torch.save(snn.state_dict(), tmp_path / 'snn.pth')
    for steps in (T, 3):
        again = mmsnn.convert(ann, steps, coding='differential')
        again.load_state_dict(torch.load(tmp_path / 'snn.pth', weights_only=True))
        assert torch.equal(again(x), snn.anytime([steps], x)[steps])
    copied = copy.deepcopy(snn)
    assert torch.equal(copied(x), snn(x)) and copied.graded == snn.graded


def test_other_pipelines_are_refused():
    snn = mmsnn.convert(Net(lambda net, y: F.silu(y)), T, coding='differential')
    assert snn.coding == 'differential'
    with pytest.raises(ValueError, match="neurons that are no ReLU: silu, silu_1. Calibrate it with pipeline='differ"):
        mmsnn.calibrate(snn, [images()], 'signed', progress=False)
    with pytest.raises(mmsnn.ConversionError, match='neither affine nor ReLU'):
        mmsnn.convert(Net(lambda net, y: F.silu(y)), T)


def test_delay_cannot_take_effect():
    relu = Net(lambda net, y: F.relu(y))
    with pytest.raises(ValueError, match='use delay=0'):
        mmsnn.convert(relu, T, coding='differential', delay=1)
    snn = mmsnn.convert(relu, T, delay=1)
    with pytest.raises(ValueError, match='use delay=0'):
        mmsnn.calibrate(snn, [images()], 'differential', progress=False)
    mmsnn.calibrate(snn, [images()], 'light', progress=False)


class Undecided(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize('f, message', [
    (lambda net, y: F.dropout(y), 'dropout: dropout.. is random'),
    (lambda net, y: y + torch.rand_like(y), 'rand_like: rand_like.. is random'),
    (lambda net, y: net.own[0](y), 'own.0: Undecided, cannot be traced')], ids=['dropout', 'noise', 'untraceable'])
def test_only_what_is_no_deterministic_function_is_refused(f, message):
    with pytest.raises(mmsnn.ConversionError, match=message):
        mmsnn.convert(Net(f, [Undecided()]), T, coding='differential')


def test_patterns_leave_parts_as_they_are():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.GELU())
            self.tail = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 1))

        def forward(self, x):
            return self.tail(self.body(x))

    ann, x = Parts(), images()
    snn = converted(ann, x, exclude='tail.*')
    assert list(snn.neurons) == ['body_1', 'body_3'] and snn.graded == ['tail_1', 'tail_2']
    assert errors(snn, ann, x)[-1] < .01
    with pytest.raises(ValueError, match='tial'):
        mmsnn.convert(ann, T, coding='differential', exclude='tial.*')


def test_graded_units_are_counted_and_logged(caplog):
    ann, x = Attention('by hand').eval(), images(2)
    with caplog.at_level(logging.INFO, logger='mmsnn'):
        snn = converted(ann, x)
        assert 'norm, matmul, softmax, matmul_1' in caplog.text
        caplog.clear()
        with CostCounter(snn) as counter:
            snn(x)
            snn(x)
    cost = counter.cost
    products, softmax, norm = 2 * 17 * 17 * 16, 2 * 17 * 17, 17 * 16
    # The norm of the stem's currents, which do not change, is computed once.
    assert cost.images == 4 and cost.graded_operations == 4 * ((products + softmax) * T + norm)
    assert cost.ann_macs == 4 * (16 * 16 * 27 + 17 * 16 * (48 + 16) + products)
    assert cost.analog_macs == 4 * 16 * 16 * 27
    assert len(caplog.records) == 1 and '4 graded units do' in caplog.text
    assert set(cost.synaptic_operations) == {'norm_identity', 'flatten_1_identity'}


def sane(model):
    """Random weights that keep the scale of what they pass on, norms that matter."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(module.weight, 0, module.weight[0].numel() ** -.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, .1)
        elif isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, .5, 1.5)
        module.training = False
    return model


def test_vision_transformer():
    pytest.importorskip('mmpretrain')
    from mmpretrain.models.backbones import VisionTransformer
    arch = dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64)
    ann, x = sane(VisionTransformer(arch=arch, img_size=32, patch_size=8)), images(4, 32)
    with pytest.raises(mmsnn.ConversionError, match='example=...'):
        mmsnn.convert(ann, T, coding='differential')
    snn = converted(ann, x, example=x)
    assert sum(name.endswith('identity') for name in snn.neurons) == 6 and len(snn.neurons) == 8
    check(snn, ann, x)
    assert errors(snn, ann, images(3, 32))[-1] < .01  # another number of images


def test_shifted_windows():
    pytest.importorskip('mmpretrain')
    from mmpretrain.models.backbones import SwinTransformer
    arch = dict(embed_dims=24, depths=[2, 2], num_heads=[2, 4])
    ann, x = sane(SwinTransformer(arch=arch, img_size=56, window_size=7, out_indices=(0, 1))), images(2, 56)
    snn = converted(ann, x, example=(1, 3, 56, 56))
    assert snn.coding == 'differential' and len(snn.graded) == 24
    check(snn, ann, x)
    assert errors(snn, ann, images(3, 56))[-1] < .01


def test_example_decides_by_sizes_and_leaves_the_number_of_images_open():
    class Decides(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            n, channels, *sizes = self.conv(x).shape
            assert channels == 4
            y = F.silu(self.conv(x)) if min(sizes) > 5 else x
            mask = torch.zeros(sizes)
            mask[0] = 1
            return self.fc((y * mask).view(int(n / 1), channels, -1).mean(-1))

    ann, x = Decides(), images(2)
    with pytest.raises(mmsnn.ConversionError, match='example=...'):
        mmsnn.convert(ann, T)
    snn = converted(ann, x, example=x)
    assert 'int' not in globals()
    check(snn, ann, images(5))
    assert list(snn.neurons) == ['silu']
