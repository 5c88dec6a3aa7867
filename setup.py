from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = {}
exec((here / 'mmsnn' / 'version.py').read_text(), version)

setup(
    name='mmsnn',
    version=version['__version__'],
    description='Convert and calibrate OpenMMLab detectors and classifiers into spiking neural networks',
    long_description=(here / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mmsnn', 'mmsnn.*']),
    package_data={'mmsnn.experiments': ['report.html.j2']},
    python_requires='>=3.10',
    # mmengine, mmcv and mmdet exist as upstream packages and as maintained forks under other names with the
    # same import names: requiring either by name would make pip lay it over the other. Hence extras.
    install_requires=['torch', 'numpy', 'tqdm'],
    extras_require={
        'openmmlab': ['onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmpretrain', 'timm'],
        'demo': ['scikit-learn', 'matplotlib', 'jinja2'],
        'export': ['nir>=1.0.8', 'onnx', 'onnxscript'],
        'docs': ['mkdocs-material>=9.6,<10', 'mkdocstrings[python]>=1,<2'],
        'dev': ['pytest', 'pytest-cov', 'nox', 'hypothesis', 'ruff', 'mypy', 'nbclient', 'ipykernel', 'tensorboard',
                'onnxruntime', 'spikingjelly[nir]>=2.0'],
    },
)
