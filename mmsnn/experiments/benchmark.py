"""What simulation and calibration cost, in forward passes of the ANN.

The unit, but of calibration, is T times the ANN's own forward pass (eager, float32, contiguous) of the same image in
the same run: what T steps would cost if every step were a pass of the ANN. Candidates take turns; medians, and the
spread over the repeats in brackets. ``whole`` is the time of all T steps in units of one such pass.
"""
import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn

from ..calibration.procedure import calibrate
from ..conversion.placing import convert as convert_network
from ..files import check_writable, save_json
from ..machine import keep_freed_memory
from ..neurons.pipelines import make_pipeline
from ..progress import progress_bar
from .candidates import FAST, build, convert, naive, published_light, small_image, spikingjelly


def measure(args: argparse.Namespace) -> list[dict]:
    """Measure one of ``MEASUREMENTS`` with the arguments of ``mmsnn benchmark``; rows are printed as they come.

    Raises:
        ValueError: ``shapes`` without a folder of images, a measurement of the CPU on another device, or no such
            pipeline.
    """
    if args.what == 'shapes' and (args.folder is None or not args.folder.is_dir()):
        raise ValueError('shapes needs --folder with images')
    if args.device != 'cpu' and args.what in ('breakdown', 'events'):
        raise ValueError(f'{args.what} measures the CPU only: omit --device')
    make_pipeline(args.pipeline)  # complains where there is none
    if args.json:
        check_writable(args.json)
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    rows = MEASUREMENTS[args.what](args)
    if args.json:
        save_json(dict(rows=rows, arguments={key: str(value) for key, value in vars(args).items()},
                       torch=torch.__version__, cpu=torch.backends.cpu.get_cpu_capability(),
                       gpu=torch.cuda.get_device_name(args.device) if 'cuda' in args.device else None), args.json)
    return rows


@torch.no_grad()
def seconds(run: Callable[..., object], *values) -> float:
    synchronise()
    started = time.perf_counter()
    run(*values)
    synchronise()
    return time.perf_counter() - started


def synchronise() -> None:
    """Wait for the GPU, where one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def ann_seconds(ann: nn.Module, x: Tensor, passes: int = 3) -> float:
    return statistics.median(seconds(ann, x) for _ in range(passes))


def spread(values: list[float]) -> str:
    return f'{statistics.median(values):.3f}' + (f' ({min(values):.2f}-{max(values):.2f})' if len(values) > 1 else '')


def simulation(args: argparse.Namespace) -> list[dict]:
    """Time candidates in turns, for every network, size and T."""
    rows = []
    for name in args.networks:
        ann, x = build(name, args.device), torch.randn(1, 3, *args.size, device=args.device)
        ann_seconds(ann, x)
        for time_steps in args.time_steps:
            candidates: dict[str, Callable] = {key: convert(ann, time_steps, args.pipeline, **FAST[key])
                                               for key in FAST if key in args.candidates}
            if 'naive' in args.candidates:
                steps = convert(ann, time_steps, args.pipeline)
                candidates['every step the whole network'] = lambda x, snn=steps: naive(snn, x)
            if 'spikingjelly' in args.candidates:
                candidates |= spikingjelly(ann, time_steps)
            first = {key: seconds(run, x) for key, run in candidates.items()}  # compiles
            ratios: dict[str, list[float]] = {key: [] for key in candidates}
            for _ in progress_bar(range(args.repeats), f'{name}, T = {time_steps}', unit='round'):
                for key, run in candidates.items():
                    unit = time_steps * ann_seconds(ann, x)
                    ratios[key].append(seconds(run, x) / unit)
            for key, values in ratios.items():
                rows.append(dict(network=name, size=args.size, time_steps=time_steps, candidate=key,
                                 whole=spread([time_steps * value for value in values]), ratio=spread(values),
                                 first_call_seconds=round(first[key], 1)))
                show(rows[-1])
    return rows


def memory(args: argparse.Namespace) -> list[dict]:
    """Peak memory of one pass, each measured in a fresh process."""
    rows = []
    for name in args.networks:
        for key, time_steps in [('ANN', 1)] + [(key, t) for key in args.candidates if key in FAST
                                               for t in args.time_steps]:
            with ProcessPoolExecutor(1, get_context('spawn')) as pool:
                found = pool.submit(peak_memory, name, key, time_steps, args).result()
            rows.append(dict(network=name, size=args.size, candidate=key, time_steps=time_steps, **found))
            show(rows[-1])
    return rows


def peak_memory(name: str, candidate: str, time_steps: int, args: argparse.Namespace) -> dict:
    """MiB that a pass adds to the process, and the process's whole peak (Linux); on a GPU, of its tensors."""
    torch.set_num_threads(args.threads)
    run = ann = build(name, args.device)
    if candidate != 'ANN':
        run = convert(ann, time_steps, args.pipeline, **FAST[candidate])
        run(small_image(ann))  # what compiling takes is not the simulation's
    x = torch.randn(1, 3, *args.size, device=args.device)
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        with torch.no_grad():
            run(x)
        peak = torch.cuda.max_memory_allocated()
        return dict(pass_mib=round((peak - held) / 2 ** 20), process_mib=round(peak / 2 ** 20))
    Path('/proc/self/clear_refs').write_text('5')  # the peak starts from here
    before = status('VmRSS')
    with torch.no_grad():
        run(x)
    return dict(pass_mib=round(status('VmHWM') - before), process_mib=round(status('VmHWM')))


def status(field: str) -> float:
    """A field of /proc/self/status in MiB."""
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def calibration(args: argparse.Namespace) -> list[dict]:
    """Time calibration in ANN passes an image, and in passes an image and time step."""
    rows = []
    for name in args.networks:
        ann = build(name, args.device)
        batches = [torch.randn(1, 3, *args.size, device=args.device) for _ in range(args.images)]
        ann_seconds(ann, batches[0])
        for time_steps in args.time_steps:
            unit = ann_seconds(ann, batches[0])
            snn = convert_network(ann, time_steps)
            taken = seconds(calibrate, snn, batches, args.pipeline)
            unit = args.images * (unit + ann_seconds(ann, batches[0])) / 2
            row = dict(network=name, layers=len(snn.neurons), size=args.size, images=args.images, time_steps=time_steps,
                       pipeline=args.pipeline, passes_an_image=round(taken / unit, 2),
                       passes_an_image_and_step=round(taken / unit / time_steps, 3), seconds=round(taken, 1))
            if args.published:
                plain = convert(ann, time_steps, 'light')
                row['whole_network_per_layer'] = round(seconds(published_light, plain, batches) / unit, 1)
            rows.append(row)
            show(row)
    return rows


def shapes(args: argparse.Namespace) -> list[dict]:
    """Simulate every image of a folder at its own size; what compiling takes counts."""
    import mmcv
    files = sorted(path for path in args.folder.iterdir() if path.suffix.lower() in ('.jpg', '.jpeg', '.png'))
    if not files:
        raise ValueError(f'no .jpg or .png file in {args.folder}')
    images = [torch.from_numpy(mmcv.imread(str(file))).permute(2, 0, 1)[None].float().to(args.device) / 64 - 2
              for file in files]
    rows = []
    for name in args.networks:
        ann = build(name, args.device)
        for time_steps in args.time_steps:
            for key in (key for key in args.candidates if key in FAST):
                snn = convert(ann, time_steps, args.pipeline, **FAST[key])
                torch._dynamo.reset()
                torch._dynamo.utils.counters.clear()
                ann_seconds(ann, images[0])
                unit = taken = 0.
                for image in progress_bar(images, f'{name}, {key}, T = {time_steps}', unit='image'):
                    unit += time_steps * seconds(ann, image)
                    taken += seconds(snn, image)
                rows.append(dict(network=name, candidate=key, time_steps=time_steps, images=len(images),
                                 sizes=len({image.shape for image in images}), ratio=round(taken / unit, 3),
                                 seconds=round(taken, 1),
                                 compilations=torch._dynamo.utils.counters['stats']['unique_graphs']))
                show(rows[-1])
    return rows


def breakdown(args: argparse.Namespace) -> list[dict]:
    """Share the time of one pass or simulation out among kinds of operations, in units of an ANN pass per step."""
    rows = []
    for name in args.networks:
        ann, x = build(name, args.device), torch.randn(1, 3, *args.size, device=args.device)
        unit = ann_seconds(ann, x)
        for time_steps in args.time_steps:
            for key in ('ANN', *(key for key in args.candidates if key in FAST)):
                run = ann if key == 'ANN' else convert(ann, time_steps, args.pipeline, **FAST[key])
                with torch.no_grad():
                    run(x)
                    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                        run(x)
                steps, shares = 1 if key == 'ANN' else time_steps, dict(convolutions=0., between=0., calls=0.)
                for event in profile.key_averages():
                    shares[kind_of(event.key)] += event.self_cpu_time_total / 1e6 / unit / steps
                rows.append(dict(network=name, size=args.size, candidate=key, time_steps=steps,
                                 **{kind: round(share, 3) for kind, share in shares.items()}))
                show(rows[-1])
    return rows


def kind_of(operation: str) -> str:
    """What an operation that the profiler reports belongs to; ``calls`` is what wraps and finds operations.

    ``mmsnn::native_layer`` is convolutions with the neurons behind them.
    """
    if operation in ('aten::mkldnn_convolution', 'aten::_slow_conv2d_forward', 'mkldnn::_convolution_pointwise',
                     'mkldnn::_convolution_pointwise_', 'aten::thnn_conv2d', 'aten::_conv_depthwise2d', 'aten::addmm',
                     'aten::mm', 'onednn::qconv2d_pointwise', 'mmsnn::native_layer'):
        return 'convolutions'
    if operation.startswith(('TorchDynamo', 'Torch-Compiled', 'aten::conv', 'aten::_conv', 'Pregraph')):
        return 'calls'
    return 'between'


def events(args: argparse.Namespace) -> list[dict]:
    """Time an event-driven convolution, with and without looking for the events, against the dense one."""
    rows, channels = [], 256
    conv = nn.Conv2d(channels, channels, 1, bias=False).to(memory_format=torch.channels_last).requires_grad_(False)
    weight = conv.weight[:, :, 0, 0].t().contiguous()
    for rate in (.01, .02, .05, .1, .2, .5):
        spikes = (torch.rand(1, channels, *args.size) < rate).float().to(memory_format=torch.channels_last)
        positions = spikes.permute(0, 2, 3, 1).reshape(-1, channels)
        found = positions.to_sparse_csr()
        torch.testing.assert_close(found @ weight, conv(spikes).permute(0, 2, 3, 1).reshape(-1, channels))
        ratios: dict[str, list[float]] = dict(product=[], search_and_product=[])
        for _ in range(args.repeats):
            unit = ann_seconds(conv, spikes)
            ratios['product'].append(seconds(torch.matmul, found, weight) / unit)
            ratios['search_and_product'].append(
                seconds(search_and_multiply, positions, weight) / unit)
        rows.append(dict(size=args.size, firing_rate=rate, **{key: spread(values) for key, values in ratios.items()}))
        show(rows[-1])
    return rows


def search_and_multiply(positions: Tensor, weight: Tensor) -> Tensor:
    """The product of spikes, (positions, channels in), and weights, (channels in, out), events looked for first."""
    return positions.to_sparse_csr() @ weight


def show(row: dict) -> None:
    print('  '.join(f'{key} {"x".join(map(str, v)) if isinstance(v, (list, tuple)) else v}' for key, v in row.items()),
          flush=True)


MEASUREMENTS = dict(simulation=simulation, memory=memory, calibration=calibration, shapes=shapes, breakdown=breakdown,
                    events=events)
