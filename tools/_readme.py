"""README.md as a package index shows it, and where the repository is; ``python tools/_readme.py`` prints the latter.

The address is that of the clone's remote, or what the environment says: it stands in no file.
"""
import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r'(!?)\[((?:!\[[^]]*\]\([^)]*\)|[^]])*)\]\((?!\w+:|#)([^)\s]+)\)')


def repository(root: Path = ROOT) -> str:
    """The repository's address for a browser: ``MMSNN_URL``, or the clone's remote; empty where there is none."""
    url = os.environ.get('MMSNN_URL', '')
    if not url and (root / '.git').exists():
        command = ['git', '-C', str(root), 'config', '--get', 'remote.origin.url']
        url = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    url = re.sub(r'^(?:ssh://)?git@([^:/]+)[:/]', r'https://\1/', url).removesuffix('.git').rstrip('/')
    return url if re.match(r'https?://[^/@]+/', url) else ''


def for_index(text: str, url: str) -> str:
    """A README whose relative links and pictures a package index can follow.

    Args:
        text: Markdown with links relative to the repository.
        url: of the repository; where it is empty, pictures are left out, and links become their text.
    """
    def absolute(match: re.Match) -> str:
        picture, label, path = match.groups()
        if not url:
            return '' if picture else label
        return f'{picture}[{label}]({url}/{"raw" if picture else "blob"}/HEAD/{path})'

    return LINK.sub(absolute, text)


if __name__ == '__main__':
    print(repository())
