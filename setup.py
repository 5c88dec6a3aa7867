import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).resolve().parent
version = {}
exec((here / 'mmsnn' / 'version.py').read_text(), version)
sys.path.insert(0, str(here / 'tools'))
from _readme import for_index, repository  # noqa: E402

url = repository(here)

# Tools that work on the repository itself.
OF_A_CLONE = ('setup_env.sh', 'demo.py', 'figures.py', 'recompute.py', '_changes.py', '_docstrings.py', '_home.py',
              '_readme.py', '_site.py', '_tables.py', '_tables_classifier_rows.py', '_tables_classifiers.py',
              '_tables_detector_rows.py', '_tables_detectors.py', '_tables_levels.py', '_tables_paper.py')


class BuildWithMim(build_py):
    """Adds what OpenMMLab looks for beside a package: its configs, tools and index of models, in ``.mim``."""

    def run(self) -> None:
        super().run()
        mim = (here if self.editable_mode else Path(self.build_lib)) / 'mmsnn' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        for name in ('configs', 'tools', 'model-index.yml'):
            if self.editable_mode:  # an installation that follows the clone
                (mim / name).symlink_to(Path('..', '..', name))
            elif (here / name).is_dir():
                shutil.copytree(here / name, mim / name, ignore=shutil.ignore_patterns('__pycache__', *OF_A_CLONE))
            else:
                shutil.copy(here / name, mim)


setup(
    name='mmsnn',
    version=version['__version__'],
    description='Convert and calibrate OpenMMLab detectors and classifiers into spiking neural networks',
    long_description=for_index((here / 'README.md').read_text(), url),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    url=url or None,
    project_urls={} if not url else {
        'Documentation': f'{url}/blob/HEAD/docs/index.md', 'Changelog': f'{url}/blob/HEAD/CHANGELOG.md',
        'Models': f'{url}/blob/HEAD/README.md#model-zoo'},
    keywords='spiking neural networks, ANN-to-SNN conversion, object detection, OpenMMLab, mmdetection, mmpretrain',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Environment :: Console',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in (10, 11, 12)),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
        'Typing :: Typed',
    ],
    packages=find_packages(include=['mmsnn', 'mmsnn.*']),
    package_data={'mmsnn': ['py.typed'], 'mmsnn.experiments': ['report.html.j2'],
                  'mmsnn.simulation': ['native.cpp']},
    cmdclass={'build_py': BuildWithMim},
    entry_points={'console_scripts': ['mmsnn = mmsnn.cli:main']},
    python_requires='>=3.10',
    # mmengine, mmcv and mmdet exist as upstream packages and as maintained forks under other names with the
    # same import names: requiring either by name would make pip lay it over the other. Hence extras.
    install_requires=['torch', 'numpy', 'tqdm'],
    extras_require={
        'openmmlab': ['onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmpretrain', 'timm'],
        'demo': ['scikit-learn', 'matplotlib', 'jinja2'],
        'export': ['nir>=1.0.8', 'onnx', 'onnxscript'],
        'docs': ['mkdocs-material>=9.6,<10', 'mkdocstrings[python]>=1,<2', 'black'],
        'dev': ['pytest', 'pytest-xdist', 'pytest-cov', 'nox', 'hypothesis', 'ruff', 'mypy', 'nbclient', 'ipykernel',
                'tensorboard', 'onnxruntime', 'spikingjelly[nir]>=2.0'],
    },
)
