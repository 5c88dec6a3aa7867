"""The command ``mmsnn convert-checkpoint`` for a clone: ``python tools/convert_checkpoint.py``."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmsnn.cli import main

if __name__ == '__main__':
    main(['convert-checkpoint', *sys.argv[1:]])
