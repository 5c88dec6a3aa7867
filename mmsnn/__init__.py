"""Convert and calibrate OpenMMLab detectors and classifiers into spiking neural networks."""
from importlib.util import find_spec

from .calibration import CalibrationReport, LayerReport, calibrate, observe
from .conversion import ConversionError, convert
from .cost import Cost, CostCounter
from .network import SpikingNetwork
from .neurons import FiringRule, IFNeuron, integrate_and_burst, integrate_and_fire
from .pipelines import PIPELINES, Pipeline
from .rates import clip_floor, clip_round, firing_rate
from .synthesis import synthesise
from .version import __version__

__all__ = [
    'CalibrationReport', 'ConversionError', 'Cost', 'CostCounter', 'FiringRule', 'IFNeuron', 'LayerReport', 'PIPELINES',
    'Pipeline', 'SpikingNetwork', '__version__', 'calibrate', 'clip_floor', 'clip_round', 'convert', 'firing_rate',
    'integrate_and_burst', 'integrate_and_fire', 'observe', 'synthesise',
]

# The verbs above need torch alone; with OpenMMLab installed, importing mmsnn (custom_imports) also registers these.
if find_spec('mmengine'):
    from .agreement import AgreementMetric
    from .backbone import SpikingBackbone
    from .cifar_resnet import CifarResNet
    from .classifier import AveragePooled, SpikingClassifier, TorchClassifier
    from .hooks import CalibrationHook
    from .metrics import SpikeMetric

    __all__ += ['AgreementMetric', 'AveragePooled', 'CalibrationHook', 'CifarResNet', 'SpikeMetric', 'SpikingBackbone',
                'SpikingClassifier', 'TorchClassifier']
