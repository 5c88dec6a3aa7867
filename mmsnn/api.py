"""What ``import mmsnn`` offers; with OpenMMLab installed, loading it also registers what configs name."""
from importlib.util import find_spec

from .analysis.cost import Cost, CostCounter
from .calibration.procedure import CalibrationReport, LayerReport, calibrate, observe
from .calibration.synthesis import synthesise
from .conversion.placing import ConversionError, convert
from .neurons.integrate_and_fire import FiringRule, integrate_and_burst, integrate_and_fire
from .neurons.layer import IFNeuron
from .neurons.pipelines import PIPELINES, Pipeline
from .neurons.rates import clip_floor, clip_round, firing_rate
from .simulation.network import SpikingNetwork
from .version import __version__

__all__ = [
    'CalibrationReport', 'ConversionError', 'Cost', 'CostCounter', 'FiringRule', 'IFNeuron', 'LayerReport', 'PIPELINES',
    'Pipeline', 'SpikingNetwork', '__version__', 'calibrate', 'clip_floor', 'clip_round', 'convert', 'firing_rate',
    'integrate_and_burst', 'integrate_and_fire', 'observe', 'synthesise',
]

# The verbs above need torch alone; these are what `custom_imports` of a config is for.
if find_spec('mmengine'):
    from .openmmlab.agreement import AgreementMetric
    from .openmmlab.backbone import SpikingBackbone
    from .openmmlab.cifar_resnet import CifarResNet
    from .openmmlab.classifier import AveragePooled, SpikingClassifier, TorchClassifier
    from .openmmlab.detector import SpikingDetector
    from .openmmlab.hooks import CalibrationHook
    from .openmmlab.metrics import SpikeMetric

    __all__ += ['AgreementMetric', 'AveragePooled', 'CalibrationHook', 'CifarResNet', 'SpikeMetric', 'SpikingBackbone',
                'SpikingClassifier', 'SpikingDetector', 'TorchClassifier']
