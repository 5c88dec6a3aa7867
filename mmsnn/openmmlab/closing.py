"""What a test of a spiking model says at its end, in one line."""
import copy
import shlex
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real

from mmengine.evaluator import BaseMetric
from mmengine.runner import Runner

from ..calibration.procedure import CalibrationReport, LayerReport
from .wrapper import SpikingWrapper

SCORES = 'coco/bbox_mAP', 'accuracy/top1'  # which score the line tells, where there are several
OWN = 'spike', 'agreement'  # prefixes of the metrics that are no scores
FILES = 'outfile_prefix', 'out_file_path', 'output_dir', 'seg_out_dir', 'pred_dir'  # where metrics write


def twins(metrics: Iterable[BaseMetric]) -> list[BaseMetric]:
    """Metrics with the settings of others, and results of their own.

    Those that write what they are given have none: it would replace the predictions of the model that is tested.
    """
    found = []
    for metric in metrics:
        other = copy.copy(metric)
        other.results = []
        if type(metric).__name__.endswith('CocoMetric') and not other.format_only:
            other.outfile_prefix = None  # that is, a temporary folder
        if not any(getattr(other, name, None) for name in FILES):
            found.append(other)
    return found


def sum_up(runner: Runner, parts: Mapping[str, SpikingWrapper], reports: Mapping[str, CalibrationReport],
           metrics: Mapping[str, float], of_ann: Sequence[BaseMetric], seconds: tuple[float, float]) -> None:
    """Log :func:`closing_line` after a test.

    Args:
        runner: of the test.
        parts: spiking parts of its model.
        reports: of their calibration, empty where the checkpoint was calibrated before.
        metrics: results of the test.
        of_ann: have been given what the ANN predicts on the same images; empty where it was not run.
        seconds: of the calibration, and of the test.
    """
    if not parts or any(part.runs_as != 'snn' for part in parts.values()):
        return
    if of_ann:
        runner.logger.info('the ANN on the same images:')
    ann: dict[str, float] = {}
    for metric in of_ann:
        ann.update(metric.evaluate(len(runner.test_dataloader.dataset)) or {})
    neurons = [neuron for part in parts.values() for neuron in part.snn.neurons.values()]
    keep = keep_command(runner.cfg.filename or 'CONFIG', runner.cfg.get('load_from') or 'CHECKPOINT', sys.argv)
    runner.logger.info(closing_line(
        metrics, ann, [layer for report in reports.values() for layer in report],
        next(iter(parts.values())).snn.time_steps, max(neuron.rule.values for neuron in neurons), seconds,
        keep if reports else ''))


def score_of(metrics: Mapping[str, float]) -> str | None:
    """The name of the score among the results of a test, of which some may be lists or matrices."""
    names = [name for name, value in metrics.items() if name.partition('/')[0] not in OWN and isinstance(value, Real)]
    return next((name for name in (*SCORES, *names) if name in names), None)


def closing_line(metrics: Mapping[str, float], ann: Mapping[str, float], layers: Iterable[LayerReport],
                 time_steps: int, levels: int, seconds: tuple[float, float], keep: str) -> str:
    """Sum a test up: the score, what is kept of the ANN's, the median error of a layer, T, levels, seconds.

    Args:
        metrics: results of the test.
        ann: results of the ANN on the same images, empty where it was not run.
        layers: what the calibration did to each layer; empty where the checkpoint was calibrated before.
        time_steps: T.
        levels: the values that a neuron can emit in one step.
        seconds: of the calibration, and of the test.
        keep: the command that keeps the calibrated network; empty where it is kept already.
    """
    name = score_of(metrics)
    parts = []
    if name is not None:
        digits = 2 if name.startswith('accuracy') else 3
        text = f'{name} {metrics[name]:.{digits}f}'
        if name in ann:
            kept = f', {metrics[name] / ann[name]:.1%} kept' if ann[name] else ''
            text += f' (the ANN: {ann[name]:.{digits}f}{kept})'
        parts.append(text)
    after = [layer.error_after for layer in layers if layer.error_after is not None]
    before = [layer.error_before for layer in layers if layer.error_before is not None]
    if after:
        parts.append(f'median relative error of a layer {statistics.median(after):.3f}'
                     + f' ({statistics.median(before):.3f} before calibration)' * bool(before))
    parts.append(f'T = {time_steps}, {levels} levels a step')
    parts.append(f'{seconds[0]:.0f} s of calibration, {seconds[1]:.0f} s of testing')
    return 'mmsnn: ' + '; '.join(parts) + (f'. To keep it: {keep}' if keep else '')


def keep_command(config: str, checkpoint: str, arguments: Sequence[str]) -> str:
    """The command that calibrates as a test did and stores the result.

    Args:
        config: of the test.
        checkpoint: that of the ANN.
        arguments: of the test's command, whose ``--cfg-options`` are taken over.
    """
    options: list[str] = []
    if '--cfg-options' in arguments:
        start = list(arguments).index('--cfg-options') + 1
        end = next((number for number in range(start, len(arguments)) if arguments[number].startswith('--')),
                   len(arguments))
        options = ['--cfg-options', *arguments[start:end]]
    return shlex.join(['mmsnn', 'calibrate', config, checkpoint, '-o', 'spiking.pth', *options])
