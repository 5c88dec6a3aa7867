"""Print versions of mmsnn and what it stands on, the compiler, the devices, and what the processor can do.

    mmsnn info

Add it to a report of a bug.
"""
import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--json', action='store_true', help='for a program to read')


def run(args: argparse.Namespace) -> None:
    import json

    from ..experiments.environment import describe
    facts = describe()
    if args.json:
        print(json.dumps(facts, indent=1))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f'{name:{width}}  {", ".join(value) if isinstance(value, list) else value}')
