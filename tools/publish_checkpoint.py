"""The command ``mmsnn publish-checkpoint`` for a clone: ``python tools/publish_checkpoint.py``."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmsnn.cli import main

if __name__ == '__main__':
    main(['publish-checkpoint', *sys.argv[1:]])
