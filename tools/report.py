"""The command ``mmsnn report`` for a clone: ``python tools/report.py``."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmsnn.cli import main

if __name__ == '__main__':
    main(['report', *sys.argv[1:]])
