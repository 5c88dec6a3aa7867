"""tools/setup_env.sh says what a machine is missing, before it starts to install anything."""
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
    shutil.copy(ROOT / 'tools' / 'setup_env.sh', tmp_path / 'tools')
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
