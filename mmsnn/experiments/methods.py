"""What the rows of a sweep are: pipelines with options, as written, as they act, and as a reader names them."""
import ast
import re
from collections.abc import Iterable
from typing import Any

from ..neurons.pipelines import Pipeline, differences, make_pipeline

# How a reader says an option; what is None says little and is left to tables and captions.
PHRASES: dict[str, Any] = dict(
    bias={True: 'with bias', False: 'without bias'},
    bias_per_step={True: 'one bias per step', False: 'one bias for all steps'},
    clip={True: 'larger activations clipped', False: 'larger activations not clipped'},
    blockwise={True: 'by block', False: 'by layer'},
    channel_wise={True: 'a threshold per channel', False: 'a threshold per layer'},
    dead_zone=lambda zone: f'dead zone of {zone:g}',
    narrowing=lambda factor: f'narrowing by {factor:g} a step',
    shrinking=lambda factor: f'sizes shrink by {factor} a step',
    iterations=lambda count: f'{count:,} iterations', learning_rate=None,
    max_rate=lambda rate: f'rate of {rate}',
    max_spikes=lambda most: 'any number of spikes a step' if most is None else f'{most} spike{"s" * (most > 1)} a step',
    levels=lambda count: f'{count} levels a step', momentum=None, neuron=lambda kind: f'{kind} neurons',
    potential={'channel': 'per channel', 'position': 'per position', None: 'without initial potential'},
    reset={'zero': 'reset to zero', 'subtract': 'reset by subtraction'},
    rounding={'round': 'scored with rounding', 'floor': 'scored with the floor'},
    rounds=lambda count: f'{count} rounds', seed=None,
    shift={'bias': 'half a threshold as bias', 'potential': 'starts at half the threshold', None: 'floors'},
    settling_steps=lambda count: f'thresholds for {count} step{"s" * (count > 1)}',
    sizes=lambda count: f'{count} size{"s" * (count > 1)} of spikes',
    signed={True: 'signed spikes', False: 'without negative spikes'},
    threshold=lambda rule: f'{rule} thresholds',
    tune=lambda names: ' and '.join(names) + ' by gradient' if names else 'weights alone by gradient',
    uniform={True: 'sizes evenly spaced', False: 'sizes of powers of two'},
    weights={True: 'and weights', False: 'weights kept'})


def parse_pipeline(text: str) -> tuple[str, dict]:
    """Read ``NAME`` or ``NAME:option=value,...`` as a pipeline's name and options of :func:`mmsnn.calibrate`.

    Raises:
        ValueError: no such pipeline, option or value.
    """
    name, options = split_pipeline(text)
    make_pipeline(name, **options)
    return name, options


def split_pipeline(text: str) -> tuple[str, dict]:
    """:func:`parse_pipeline`, whether or not there is such a pipeline."""
    def value(word: str):
        try:
            return ast.literal_eval(word)
        except (ValueError, SyntaxError):
            return None if word == 'none' else word

    name, _, settings = text.partition(':')
    pairs = (setting.partition('=') for setting in filter(None, re.split(r',(?=\w+=)', settings)))
    return name, {key: value(word) for key, _, word in pairs}


def job_options(job: dict, own: tuple[str, dict]) -> dict:
    """The options of a job's pipeline: those that are written beside its name, and those on the sweep's axes.

    Args:
        job: settings on the axes.
        own: pipeline and options of the config's hook. They belong together: to another pipeline they do not apply.
    """
    name, chosen = parse_pipeline(job['pipeline'])
    options = dict(own[1]) if name == own[0] else {}
    if job['threshold']:
        rule, _, granularity = job['threshold'].partition('-')
        options.update(threshold=rule, channel_wise=granularity != 'layer')
    if job['shift']:
        options.update(shift=None if job['shift'] == 'none' else job['shift'])
    return {**options, **chosen}


def job_pipeline(job: dict, own: tuple[str, dict]) -> Pipeline:
    """The whole pipeline of a job; see :func:`job_options`."""
    return make_pipeline(parse_pipeline(job['pipeline'])[0], **job_options(job, own))


def job_choices(job: dict, own: tuple[str, dict]) -> dict | None:
    """How the pipeline of a job differs from the one that it is named after; None for the ANN's."""
    if job['pipeline'] == 'ann':
        return None
    return differences(parse_pipeline(job['pipeline'])[0], job_pipeline(job, own))


def unused_options(jobs: list[dict], own: tuple[str, dict]) -> str:
    """One line on options of the config's hook that apply to none of the jobs, or nothing."""
    names = [parse_pipeline(job['pipeline'])[0] for job in jobs if job['pipeline'] != 'ann']
    if not own[1] or own[0] in names:
        return ''
    return (f'the options of the config ({written(own[1])}) belong to its pipeline {own[0]!r}, which is not among '
            f'these; write NAME:{next(iter(own[1]))}=... to give them to another')


def written(options: dict) -> str:
    """Options as they are written beside a pipeline's name."""
    return ','.join(f'{key}={value}' for key, value in options.items())


def choices_table(rows: list[dict]) -> str:
    """What the methods of some rows are beside their names, as a markdown table; empty where they are all as named."""
    found = {', '.join(str(row[axis]) for axis in ('pipeline', 'threshold', 'shift') if row.get(axis)): row['choices']
             for row in rows if row.get('choices')}
    lines = [f'| {method} | {", ".join(f"`{name}={value}`" for name, value in choices.items())} |'
             for method, choices in found.items()]
    head = ['| pipeline | where it differs from the one of this name |', '|---|---|']
    return '\n'.join(head + lines) if lines else ''


def readable(pipelines: Iterable[str]) -> dict[str, str]:
    """Name pipelines with options as a reader would: ``advanced:iterations=200`` as ``advanced, 200 iterations``.

    What says little (a learning rate) is left out, unless two would have the same name without it.
    """
    def name(text: str, whole: bool) -> str:
        pipeline, options = split_pipeline(text)
        phrases = []
        for key, value in options.items():
            phrase = PHRASES.get(key)
            if isinstance(phrase, dict):
                phrase = phrase.get(value, f'{key} {value}')
            elif phrase is not None:
                phrase = phrase(value)
            elif whole:
                phrase = f'{key.replace("_", " ")} {value}'
            phrases += [phrase] if phrase else []
        return ', '.join([pipeline, *phrases])

    texts = list(dict.fromkeys(pipelines))
    short = {text: name(text, False) for text in texts}
    return {text: label if list(short.values()).count(label) == 1 else name(text, True)
            for text, label in short.items()}
