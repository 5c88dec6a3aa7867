"""What is written for other software computes there what it computes here."""
import numpy as np
import pytest
import torch
from test_engine import exact, inputs
from torch import nn

import mmsnn
from mmsnn.export.formats import export
from mmsnn.export.nir_terms import ExportError

from networks import Functional, Residual, leaves, randomise_norms, three_layers

T = 6


class Plain(nn.Module):
    """Nothing but what NIR has: a stem, blocks with identity, projected, and sliced and padded shortcuts, a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.conv3, self.short = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), nn.Conv2d(4, 8, 1, stride=2)
        self.pool, self.global_pool = nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)
        self.conv4 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.fc1, self.fc2 = nn.Linear(12, 9), nn.Linear(9, 5)

    def forward(self, x):
        x = self.relu(self.stem(x))
        x = self.relu(self.conv2(self.relu(self.conv1(x))) + x)
        x = self.relu(self.conv3(x) + self.short(x))
        wide = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        x = self.relu(self.conv4(x) + wide)
        x = self.global_pool(self.pool(x))
        return self.fc2(self.relu(self.fc1(x.view(x.size(0), -1))))


def converted(network, x, pipeline='light', conversion=None, **options):
    snn = mmsnn.convert(randomise_norms(network).eval(), T, **(conversion or {}))
    mmsnn.calibrate(snn, [x], pipeline, progress=False, **options)
    return snn


@pytest.mark.parametrize('pipeline', ['light', 'none', 'spike-norm'])
def test_nir_graph_fires_the_same_spikes_in_another_simulator(tmp_path, pipeline):
    pytest.importorskip('nir')
    pytest.importorskip('spikingjelly')
    from mmsnn.export.checking import count_spikes, run_nir
    x = torch.randn(8, 3, 16, 16)
    snn = converted(Plain(), x, pipeline).double()  # in float32 a sum that meets the threshold may miss it there
    export(snn, x.double(), tmp_path / 'plain.nir', 'nir')
    output, spikes = run_nir(tmp_path / 'plain.nir', x.double())
    expected = count_spikes(snn, x.double())
    assert set(spikes) == set(expected) == set(snn.neurons)
    for name, count in expected.items():
        assert torch.equal(spikes[name], count), name
    assert min(int(count.sum()) for count in expected.values()) > 0, 'every layer fires'
    torch.testing.assert_close(output, snn(x.double()), rtol=1e-12, atol=1e-12)
    assert [path.name for path in tmp_path.iterdir()] == ['plain.nir']


def test_nir_weights_are_normalised_by_the_thresholds_around_them(tmp_path):
    nir = pytest.importorskip('nir')
    snn = converted(three_layers(), torch.rand(4, 1, 1, 1), 'none')
    first, second = snn.neurons.values()
    first.threshold, first.bias = torch.tensor([2., 4.]), torch.tensor([1., 2.])
    second.threshold, second.bias = torch.tensor([.5, 1., 8.]), torch.tensor([0., 3., 4.])
    export(snn, torch.zeros(1, 1, 1, 1), tmp_path / 'net.nir', 'nir')
    graph = nir.read(tmp_path / 'net.nir')
    layers = [node for node in graph.nodes.values() if isinstance(node, nir.Conv2d)]
    one, two = sorted(layers, key=lambda node: len(node.weight))
    assert one.weight.flatten().tolist() == [1 / 2, 1 / 4] and one.bias.tolist() == [1 / 2, 2 / 4]
    assert two.weight[:, :, 0, 0].tolist() == [[2 / .5, 4 / .5], [2 / 1, 4 / 1], [2 / 8, 4 / 8]]
    assert two.bias.tolist() == [0., 3., .5]
    head, = (node for node in graph.nodes.values() if isinstance(node, nir.Affine))
    assert head.weight.tolist() == [[.5, 1., 8.]] * 4 and head.bias.tolist() == [0.] * 4
    for node in graph.nodes.values():
        if isinstance(node, nir.IF):
            assert (node.v_threshold == 1).all() and (node.r == 1).all() and (node.v_reset == 0).all()
    assert graph.metadata['reset'] == 'subtract' and graph.metadata['time_steps'] == T
    thresholds = [node.metadata['threshold'].tolist() for node in graph.nodes.values() if isinstance(node, nir.IF)]
    assert sorted(thresholds) == [[.5, 1., 8.], [2., 4.]]


def test_backbone_that_ends_with_neurons_puts_out_their_thresholds(tmp_path):
    nir = pytest.importorskip('nir')
    snn = converted(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), inputs(), 'none')
    export(snn, inputs(), tmp_path / 'net.nir', 'nir')
    graph = nir.read(tmp_path / 'net.nir')
    last, = (graph.nodes[source] for source, target in graph.edges if target == 'output')
    neuron, = snn.neurons.values()
    assert np.array_equal(last.weight[:, :, 0, 0], np.diag(neuron.threshold.numpy()))


REFUSED = {
    'signed spikes': (dict(pipeline='signed', max_spikes=1, max_rate=1), {}, ['relu_2 and 3 more', 'signed spikes']),
    'bursts': (dict(pipeline='none', max_spikes=2), {}, ['bursts']),
    'initial potential': (dict(pipeline='potential'), {}, ['relu', 'initial potential', "'light'"]),
    'bias per step': (dict(bias_per_step=True), {}, ['changes from step to step']),
    'delay': ({}, dict(delay=2), ['delay=2']),
    'bfloat16': ({}, dict(dtype='bfloat16'), ["dtype='bfloat16'"]),
    'left analog': ({}, dict(exclude=['relu_2']), ['relu_2', 'ReLU']),
}


@pytest.mark.parametrize('calibration, conversion, told', REFUSED.values(), ids=REFUSED)
def test_nir_refuses_by_name_and_leaves_the_old_file(tmp_path, calibration, conversion, told):
    pytest.importorskip('nir')
    snn = converted(Plain(), inputs(), conversion=conversion, **calibration)
    path = tmp_path / 'net.nir'
    path.write_text('old')
    with pytest.raises(ExportError) as error:
        export(snn, inputs(), path, 'nir')
    assert all(text in str(error.value) for text in told), str(error.value)
    assert path.read_text() == 'old' and len(list(tmp_path.iterdir())) == 1


def test_nir_names_every_node_that_it_cannot_express(tmp_path):
    pytest.importorskip('nir')
    with pytest.raises(ExportError, match=r'maxpool \(MaxPool2d\): NIR has no max pooling'):
        export(converted(Residual(), inputs()), inputs(), tmp_path / 'net.nir', 'nir')
    with pytest.raises(ExportError) as error:
        export(converted(Functional(), inputs()), inputs(), tmp_path / 'net.nir', 'nir')
    assert 'sub (sub()): has no counterpart' in str(error.value)
    assert 'mul (mul()): has no counterpart' in str(error.value)


def test_nir_refuses_a_mean_that_merely_has_the_shape_of_one_over_space(tmp_path):
    pytest.importorskip('nir')

    class OverRows(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(torch.relu(self.conv(x)).mean((1, 2)))

    x = torch.rand(2, 3, 4, 4)
    with pytest.raises(ExportError, match='NIR has no mean other than average pooling over height and width'):
        export(converted(OverRows(), x), x, tmp_path / 'net.nir', 'nir')


ONNX = {
    'light': (Residual, 'light', {}),
    'signed': (Residual, 'signed', {}),
    'ceilings': (Functional, 'unclipped', {}),
    'sizes are read': (Plain, 'signed', {}),
    'delayed potentials': (Functional, 'signed', dict(delay=2, readout='potential')),
}


@pytest.mark.parametrize('network, pipeline, conversion', ONNX.values(), ids=ONNX)
def test_onnx_model_computes_the_whole_simulation(tmp_path, network, pipeline, conversion):
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(package)
    from mmsnn.export.checking import run_onnx
    options = dict(pipeline='signed', max_rate=1, clip=False) if pipeline == 'unclipped' else dict(pipeline=pipeline)
    snn = exact(converted(network(), inputs(), conversion=conversion, **options))
    snn.network.requires_grad_(True)  # as SpikingClassifier does
    path = tmp_path / 'net.onnx'
    export(snn, inputs(1), path, 'onnx')
    assert all(parameter.requires_grad for parameter in snn.network.parameters()), 'the network stays as it is'
    for batch in (1, 3):
        x = inputs(batch)
        expected = leaves(snn(x))
        for value, own in zip(run_onnx(path, x), expected, strict=True):
            torch.testing.assert_close(value, own, rtol=1e-6, atol=1e-6)
            assert own.abs().max() > .1


def test_what_cannot_be_written_is_said_before_anything_is(tmp_path):
    snn = mmsnn.convert(three_layers(), T)
    with pytest.raises(ValueError, match="format must be one of .*'nir'"):
        export(snn, torch.zeros(1, 1, 1, 1), tmp_path / 'net', 'hdf5')
    for format in ('nir', 'onnx'):
        pytest.importorskip(format)
        with pytest.raises(RuntimeError, match='no thresholds yet'):
            export(snn, torch.zeros(1, 1, 1, 1), tmp_path / 'net', format)
    assert not list(tmp_path.iterdir())


def test_onnx_refuses_bfloat16_and_networks_without_spikes(tmp_path):
    pytest.importorskip('onnxscript')
    snn = converted(Residual(), inputs(), conversion=dict(dtype='bfloat16'))
    with pytest.raises(ExportError, match="dtype='bfloat16'"):
        export(snn, inputs(), tmp_path / 'net.onnx', 'onnx')
    snn = converted(Residual(), inputs(), 'none', dict(exclude=['*']))
    with pytest.raises(ExportError, match='nothing to simulate'):
        export(snn, inputs(), tmp_path / 'net.onnx', 'onnx')
