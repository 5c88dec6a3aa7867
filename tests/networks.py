"""Small networks for the tests, and what happens in them when they are simulated."""
import math

import torch
import torch.nn.functional as F
from torch import nn

from mmsnn.neurons.model import per_channel
from mmsnn.simulation.loop import TimeLoop
from mmsnn.simulation.operations import is_max_pool
from mmsnn.simulation.plan import Plan, evaluate, is_neuron


def leaves(value):
    """The tensors in nested tuples, lists and dicts."""
    return torch.utils._pytree.tree_flatten(value)[0]


def randomise_norms(model):
    """Give batch normalisation statistics and scales that matter when folded."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, .2)
            module.running_var.uniform_(.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, .5, 1.5)
                nn.init.normal_(module.bias, 0, .2)
    return model


class Residual(nn.Module):
    """Stem with max pooling, a residual block of one shared ReLU module, a max pooling between spiking layers."""

    def __init__(self, channels=6):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool = nn.MaxPool2d(2)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.fc = nn.Linear(channels, 5)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        out = self.relu(self.bn2(self.conv2(x)))
        out = self.conv3(out)
        out += x
        out = self.pool(self.relu(out))
        return self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))


class Functional(nn.Module):
    """Every spelling of ReLU, padding, slicing, concatenation, products with constants."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu6 = nn.ReLU6()
        self.scale = nn.Parameter(torch.rand(4, 1, 1) + .5)
        self.norm = randomise_norms(nn.BatchNorm2d(8))  # behind a concatenation: cannot be folded, stays affine
        self.conv2 = nn.Conv2d(8, 4, 3, stride=2, padding=1)

    def forward(self, x):
        a = F.relu(self.conv(x))
        b = torch.relu(a[:, :2] - .3)
        b = F.pad(b, (0, 0, 0, 0, 1, 1))
        c = torch.cat([self.relu6(self.scale * a * 4 - .5), b], 1)
        d = self.conv2(self.norm(c)).relu()
        return {'low': a.relu(), 'high': (d, F.interpolate(d, scale_factor=2.))}


def three_layers():
    """1 x 1 convolutions on one position: 1 -> 2 -> 3 channels and a linear layer to 4 outputs; all weights 1."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 3, 1, bias=False), nn.ReLU(),
                        nn.Flatten(), nn.Linear(3, 4, bias=False))
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    return net


def checks_what_it_gets(_net, x):
    """ReLU behind checks; here, because pytest rewrites the assertions of test files."""
    assert x.ndim == 4 and x.shape[1] == 4, f'{x.shape} has other channels'
    if x.shape[2] < 2 or x.shape[3] < 2:
        raise ValueError(f'too small: {x.shape[2]} x {x.shape[3]}')
    if x.dim() != 4:
        raise ValueError('no images')
    return F.relu(x)


class Small(nn.Module):
    """A stem and its neurons."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()

    def forward(self, x):
        return self.relu(self.conv(x))


@torch.no_grad()
def simulate(snn, x):
    """The output, and for each layer of neurons its currents and spikes (T, N, ...), first and last potential."""
    nodes = snn.neuron_nodes
    plan = Plan(snn.graph, [*nodes, *(node.args[0] for node in nodes), *snn.plan.targets])
    loop, values = TimeLoop(snn.network, plan), snn.bind(x)
    static, found, last = plan.once(values), {}, {}
    for _, chunk, kept, each in loop._run(values, [snn.time_steps], snn.chunk_steps, {}, each_step=True):
        for node, value in zip(chunk.targets, each):
            found.setdefault(node, []).append(value.clone())
        last = {entry.node: value.clone() for entry, value in zip(chunk.kept, kept)
                if entry.kind == 'neuron' and entry.number == 0}
    layers = {}
    for node, (name, neuron) in zip(nodes, snn.neurons.items()):
        source = node.args[0]
        currents = torch.cat(found[source]) if source in found else torch.stack([static[source]] * snn.time_steps)
        layers[name] = dict(currents=currents, spikes=torch.cat(found[node]), first=neuron.start(currents[0])[0],
                            last=last[node])
    return snn(x), layers


class Naive:
    """An independent simulation: the whole network at every step, with the published equations written out."""

    def __init__(self, snn):
        self.snn, self.spikes = snn, {}

    @torch.no_grad()
    def __call__(self, x, stops=None):
        """The sum of each output node's values over the steps after ``delay``, at each of ``stops`` (default: T)."""
        snn, self.state, self.analog, sums, found = self.snn, {}, {}, {}, {}
        targets = [snn._read_from(node) for node in snn._output_nodes]
        for step in range(snn.time_steps):
            env = dict(snn.bind(x))
            for node in snn.graph.nodes:
                if node.op not in ('placeholder', 'output'):
                    env[node] = self.compute(node, env, step)
            for node in targets:
                if step >= snn.delay:
                    sums[node] = sums[node] + env[node] if node in sums else env[node].clone()
            if step + 1 in (stops or [snn.time_steps]):
                found[step + 1] = {node: value.clone() for node, value in sums.items()}
        return found

    def compute(self, node, env, step):
        module = self.snn.network.get_submodule(node.target) if node.op == 'call_module' else None
        if is_neuron(node):
            return self.fire(node, module, env[node.args[0]], step)
        if node not in self.snn.plan.running:
            return evaluate(node, env, module)
        # What stays analog follows the mean of its inputs: it puts out how much t f(mean) has grown.
        inputs = [arg for arg in node.all_input_nodes if arg in self.snn.plan.varies]
        sums, total = self.analog.get(node, ({}, 0.))
        sums = {arg: sums[arg] + env[arg] if sums else env[arg].clone() for arg in inputs}
        count = 1 if is_max_pool(node) else step + 1
        value = evaluate(node, {**env, **{arg: value / count for arg, value in sums.items()}}, module) * count
        self.analog[node] = sums, value
        return value - total

    def fire(self, node, neuron, current, step):
        rule, h = neuron.rule, per_channel(neuron.threshold, current)
        bias = neuron.bias[step] if neuron.bias.ndim > 1 else neuron.bias
        if node not in self.state:
            self.state[node] = [neuron.start(current)[0], torch.zeros_like(current)]
        v, n = self.state[node]
        v = v + current + per_channel(bias, current)
        if rule.signed or rule.max_spikes > 1:
            k = (v / h).floor().clamp(-rule.max_spikes if rule.signed else 0, rule.max_spikes)
            k = (n + k).clamp(min=0) - n
            if rule.clip:
                k = (n + k).clamp(max=rule.max_rate * neuron.time_steps) - n
            elif neuron.ceiling < math.inf:
                k = torch.minimum(n + k, (neuron.ceiling * neuron.time_steps / h + .5).floor()) - n
        else:
            k = (v >= h).to(v.dtype)
        spike = torch.where(k != 0, k * h, 0.)
        v = torch.where(k > 0, 0., v) if rule.reset == 'zero' else v - spike
        self.state[node] = [v, n + k]
        self.spikes[node] = self.spikes.get(node, 0.) + float(k.abs().sum())
        return spike
