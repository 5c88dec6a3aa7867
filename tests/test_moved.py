"""Names of version 0.1 lead to what they led to, although modules stand in folders now."""
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import mmsnn
from mmsnn.moved import MOVED

NAMES = {  # modules of version 0.1 and what others import from them
    'agreement': ['AgreementMetric', 'ann_predictions', 'predicted_class'],
    'analysis': ['QUANTILES', 'box', 'channel_errors', 'parameter_bytes', 'threshold_shares'],
    'backbone': ['SpikingBackbone'], 'balancing': ['balanced_thresholds'],
    'calibration': ['CalibrationReport', 'LayerReport', 'calibrate', 'calibrate_layer', 'observe', 'set_threshold'],
    'checkpoint': ['new_file', 'save_checkpoint', 'write_checkpoint', 'write_file'], 'cifar_resnet': ['CifarResNet'],
    'classifier': ['AveragePooled', 'SpikingClassifier', 'TorchClassifier'],
    'conversion': ['ConversionError', 'convert', 'fold_batch_norm', 'place_neurons', 'trace'],
    'corrections': ['Errors', 'correct_bias', 'correct_potential', 'largest_current', 'measure'],
    'cost': ['Cost', 'CostCounter', 'connections'], 'distributed': ['gather', 'own', 'total'],
    'engine': ['compiled'], 'export': ['NEEDS', 'Simulation', 'export', 'to_onnx'],
    'hooks': ['CalibrationHook', 'WRAPPED', 'calibration_hook', 'plain_config'], 'metrics': ['SpikeMetric'],
    'network': ['SpikingNetwork', 'neuron_name', 'read_settings'],
    'neurons': ['FiringRule', 'IFNeuron', 'integrate_and_burst', 'integrate_and_fire', 'per_channel'],
    'nir_graph': ['ExportError', 'to_nir'], 'operations': ['is_affine', 'module_of', 'source_of'],
    'pipelines': ['PIPELINES', 'Pipeline', 'make_pipeline'], 'plots': ['plot_against_time_steps'],
    'rates': ['clip_floor', 'clip_round', 'firing_rate', 'straight_through_floor'],
    'registry': ['HOOKS', 'METRICS', 'MODELS'], 'simulate': ['Plan', 'evaluate', 'is_neuron', 'neuron_of'],
    'store': ['Store', 'mean_spikes', 'pack_spikes', 'unpack_spikes'],
    'sweep': ['Block', 'Layer', 'Sweep', 'blocks_of'], 'synthesis': ['synthesise'],
    'theory': ['ErrorReport', 'LayerErrors', 'error_sources'],
    'thresholds': ['RULES', 'ActivationHistogram', 'choose_threshold', 'mmse_threshold'],
    'version': ['__version__'], 'weights': ['descend', 'improve_weights'],
    'wrapper': ['SpikingWrapper', 'spiking_parts']}
OPENMMLAB = {old for old, new in MOVED.items() if new.startswith('openmmlab')}


@pytest.mark.parametrize('old', NAMES)
def test_an_old_name_is_the_same_module(old):
    if old in OPENMMLAB:
        pytest.importorskip('mmengine')
    module = import_module(f'mmsnn.{old}')
    missing = [name for name in NAMES[old] if not hasattr(module, name)]
    assert not missing
    if old in MOVED:
        new = import_module(f'mmsnn.{MOVED[old]}')
        assert module is new and getattr(mmsnn, old) is new and new.__spec__.name == f'mmsnn.{MOVED[old]}'
    for name in set(NAMES[old]) & set(mmsnn.__all__):
        assert getattr(module, name) is getattr(mmsnn, name)


def test_every_old_name_is_tested_and_none_hides_a_module():
    assert set(MOVED) <= set(NAMES)
    package = Path(mmsnn.__file__).parent
    assert not [old for old in MOVED if (package / f'{old}.py').exists() or (package / old).exists()]


def test_what_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match="No module named 'mmsnn.nowhere'"):
        import_module('mmsnn.nowhere')
    with pytest.raises(AttributeError, match="module 'mmsnn' has no attribute 'nowhere'"):
        getattr(mmsnn, 'nowhere')  # noqa: B009


def test_old_names_load_nothing_until_they_are_asked_for():
    program = ('import sys, mmsnn; assert "mmsnn.analysis.plots" not in sys.modules;'
               'assert mmsnn.thresholds.RULES is sys.modules["mmsnn.neurons.thresholds"].RULES;'
               'from mmsnn.plots import plot_errors; assert plot_errors.__module__ == "mmsnn.analysis.plots";'
               'import mmsnn.analysis.plots, mmsnn.plots; assert mmsnn.plots is mmsnn.analysis.plots')
    subprocess.run([sys.executable, '-c', program], check=True, cwd=Path(mmsnn.__file__).parent.parent, timeout=120)
