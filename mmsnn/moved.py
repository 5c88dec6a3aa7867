"""Names that modules had before they stood in folders: pure Python configs and programs of version 0.1 import them."""
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

PACKAGE = __package__ or 'mmsnn'
MOVED = {
    'agreement': 'openmmlab.agreement', 'backbone': 'openmmlab.backbone', 'balancing': 'calibration.balancing',
    'checkpoint': 'files', 'cifar_resnet': 'openmmlab.cifar_resnet', 'classifier': 'openmmlab.classifier',
    'corrections': 'calibration.corrections', 'cost': 'analysis.cost', 'engine': 'simulation.loop',
    'hooks': 'openmmlab.hooks', 'metrics': 'openmmlab.metrics', 'network': 'simulation.network',
    'nir_graph': 'export.nir_graph', 'operations': 'simulation.operations', 'pipelines': 'neurons.pipelines',
    'plots': 'analysis.plots', 'rates': 'neurons.rates', 'registry': 'openmmlab.registry',
    'simulate': 'simulation.plan', 'store': 'calibration.store', 'sweep': 'calibration.walk',
    'synthesis': 'calibration.synthesis', 'theory': 'analysis.theory', 'thresholds': 'neurons.thresholds',
    'weights': 'calibration.weights', 'wrapper': 'openmmlab.wrapper'}
"""Where each of them is, by its old name. Those that are folders now, such as ``neurons``, offer what they did."""


class Mover(MetaPathFinder, Loader):
    """Finds a moved module under its old name: the same module, so that its classes and dictionaries are the same."""

    def find_spec(self, fullname: str, path: Sequence[str] | None,
                  target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, name = fullname.rpartition('.')
        return ModuleSpec(fullname, self) if package == PACKAGE and name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        # Importing returns what stands here afterwards, not the empty module that was made for it.
        name = module.__name__.rpartition('.')[2]
        sys.modules[module.__name__] = import_module(f'{PACKAGE}.{MOVED[name]}')


def install() -> None:
    """Let Python ask a :class:`Mover` for what it does not find in the package itself."""
    if not any(isinstance(finder, Mover) for finder in sys.meta_path):
        sys.meta_path.append(Mover())
