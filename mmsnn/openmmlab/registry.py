"""Registries of mmsnn, children of mmengine's: configs name their entries ``mmsnn.<Name>``."""
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmsnn', locations=['mmsnn'])
METRICS = Registry('metric', parent=MMENGINE_METRICS, scope='mmsnn', locations=['mmsnn'])
MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmsnn', locations=['mmsnn'])

# mmengine.hub.get_config('mmsnn::...'), and _base_, know only the packages that are listed there.
MODULE2PACKAGE['mmsnn'] = 'mmsnn'
