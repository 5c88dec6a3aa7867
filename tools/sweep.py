"""The command ``mmsnn sweep`` for a clone: ``python tools/sweep.py``."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmsnn.cli import main

if __name__ == '__main__':
    main(['sweep', *sys.argv[1:]])
