"""The tests on every supported stack: ``nox -s tests``, or one of them, ``nox -s "tests(upstream, 3.10)"``.

Each stack gets an environment of its own below .nox, for which mmcv is compiled once (about 10 minutes on two cores).
Interpreters are looked for on the PATH. Arguments after -- go to pytest.
"""
import shutil

import nox

STACKS = {'forks': 'requirements.txt', 'upstream': 'requirements-upstream.txt'}
PYTHONS = ('3.10', '3.11', '3.12')


@nox.session(venv_backend='none')
@nox.parametrize('stack, python', [nox.param(stack, python, id=f'{stack}, {python}')
                                   for stack in STACKS for python in PYTHONS])
def tests(session: nox.Session, stack: str, python: str) -> None:
    interpreter = shutil.which(f'python{python}')
    if interpreter is None:
        session.skip(f'python{python} is not on the PATH')
    folder = f'.nox/{stack}-{python}'
    session.run('bash', 'tools/setup_env.sh', external=True,
                env=dict(PYTHON=interpreter, VENV=folder, REQUIREMENTS=STACKS[stack]))
    session.run(f'{folder}/bin/python', '-m', 'pytest', 'tests', *session.posargs, external=True)
