"""tools/setup_env.sh says what a machine is missing, before it starts to install anything; its compiler saves time."""
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def clone(tmp_path):
    for name in ('requirements.txt', 'setup.py'):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / 'tools').mkdir()
    for name in ('setup_env.sh', 'compile_operator.sh'):
        shutil.copy(ROOT / 'tools' / name, tmp_path / 'tools')
    return tmp_path


def run(clone, **variables):
    return subprocess.run(['bash', 'tools/setup_env.sh'], cwd=clone, env=dict(os.environ, **variables), text=True,
                          capture_output=True, timeout=60)


def fake(clone, name, script):
    """Put a program before the real ones."""
    folder = clone / 'bin'
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f'#!/bin/sh\n{script}\n')
    (folder / name).chmod(0o755)
    return f'{folder}:{os.environ["PATH"]}'


def test_missing_compiler(clone):
    result = run(clone, CXX='no-such-compiler')
    assert result.returncode == 1 and "no C++ compiler ('no-such-compiler')" in result.stderr


def test_old_compiler(clone):
    result = run(clone, PATH=fake(clone, 'g++', 'exit 1'), CXX='g++')
    assert result.returncode == 1 and '-std=c++20' in result.stderr


def test_full_disk(clone):
    result = run(clone, PATH=fake(clone, 'df', 'echo header; echo /dev/sda 1 1 1048576 1% /'))
    assert result.returncode == 1 and 'only 1 GB are free' in result.stderr
    assert not (clone / '.venv').exists()


def test_old_python(clone):
    for name in ('python3', 'python3.10', 'python3.11', 'python3.12', 'python3.13', 'python'):
        path = fake(clone, name, 'exit 1')
    result = run(clone, PATH=path, PYTHON='')
    assert result.returncode == 1 and 'Python >= 3.10 was not found' in result.stderr


needs_compiler = pytest.mark.skipif(not (shutil.which('g++') and shutil.which('flock')), reason='needs g++ and flock')


@pytest.fixture
def operators(tmp_path):
    """Two operators, a header in the place of torch's, and a function that compiles as mmcv's setup.py does."""
    (tmp_path / 'torch').mkdir()
    (tmp_path / 'headers').mkdir()
    (tmp_path / 'csrc').mkdir()
    (tmp_path / 'torch' / 'types.h').write_text('#pragma once\n#include <concepts>\nstruct Tensor { int size; };\n')
    for name in 'ab':
        (tmp_path / 'csrc' / f'{name}.cpp').write_text(
            f'#include <torch/types.h>\nint {name}(Tensor t) {{ return NUMBER + t.size; }}\n')

    def start(name, *flags):
        return subprocess.Popen(
            [ROOT / 'tools' / 'compile_operator.sh', '-MMD', '-MF', f'{name}.d', '-g', '-O1', f'-I{tmp_path}', '-c',
             '-c', f'{tmp_path}/csrc/{name}.cpp', '-o', f'{name}.o', '-std=c++17', '-DNUMBER=3', '-H', *flags],
            cwd=tmp_path, env=dict(os.environ, REAL_CXX='g++', HEADERS=str(tmp_path / 'headers')), text=True,
            stderr=subprocess.PIPE)

    return tmp_path, start


@needs_compiler
def test_headers_are_compiled_once(operators):
    folder, start = operators
    runs = [start(name) for name in 'ab']  # at the same time, as ninja does
    output = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], output
    used = f'! {folder}/headers/operators.h.gch'  # what g++ -H says of a precompiled header that it takes
    assert all(used in text for text in output)
    assert sum(f'{folder}/torch/types.h' in text for text in output) == 1  # that of the call that compiled it
    assert b'.debug_info' not in (folder / 'a.o').read_bytes()
    assert f'{folder}/csrc/a.cpp' in (folder / 'a.d').read_text()
    # Everything else goes to the compiler as it is.
    (folder / 'main.cpp').write_text('#include <torch/types.h>\nint a(Tensor), b(Tensor);\n'
                                     'int main() { return a({1}) + b({2}); }\n')
    subprocess.run([ROOT / 'tools' / 'compile_operator.sh', f'-I{folder}', 'main.cpp', 'a.o', 'b.o', '-o', 'main'],
                   cwd=folder, env=dict(os.environ, REAL_CXX='g++'), check=True)
    assert subprocess.run([folder / 'main']).returncode == 4 + 5


@needs_compiler
def test_header_with_other_flags_is_not_used(operators):
    folder, start = operators
    assert start('a').wait(60) == 0
    other = start('b', '-fno-exceptions')
    output = other.communicate(timeout=60)[1]
    assert other.returncode == 0 and (folder / 'b.o').is_file()  # g++ reads the plain one
    assert f'x {folder}/headers/operators.h.gch' in output and f'{folder}/torch/types.h' in (folder / 'b.d').read_text()


@needs_compiler
def test_errors_of_an_operator_are_errors(operators):
    folder, start = operators
    (folder / 'csrc' / 'a.cpp').write_text('#include <torch/types.h>\nint a(Missing);\n')
    broken = start('a')
    assert 'Missing' in broken.communicate(timeout=60)[1] and broken.returncode != 0
    assert start('b').wait(60) == 0
    # A header that does not compile by itself: operators do without.
    shutil.rmtree(folder / 'headers')
    (folder / 'headers').mkdir()
    (folder / 'torch' / 'types.h').write_text('#ifndef NUMBERS\n#error alone\n#endif\nstruct Tensor { int size; };\n')
    (folder / 'csrc' / 'b.cpp').write_text('#define NUMBERS\n#include <torch/types.h>\nint b(Tensor);\n')
    assert start('b').wait(60) == 0 and not list((folder / 'headers').glob('*.gch'))
