"""Modules whose weights are computed from others, by hooks or parametrisations, become modules with plain weights."""
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

# What a subclass may define without computing anything else.
HARMLESS = {'__init__', '__module__', '__doc__', '__qualname__', '__annotations__', '__constants__', '__dict__',
            '__weakref__', '__firstlineno__', '__static_attributes__', '__annotate__', '__annotate_func__',
            '__repr__', '_version', 'extra_repr', 'reset_parameters', 'init_weights',
            '_check_input_dim'}  # mmengine's SyncBatchNorm takes any number of dimensions


def is_plain(kind: type[nn.Module]) -> bool:
    """True for subclasses of torch's own layers that compute what these do: they need not be traced into."""
    own = [cls for cls in kind.__mro__ if not cls.__module__.startswith(('torch.nn', 'torch.ao.nn'))
           and issubclass(cls, nn.Module)]
    base = next(cls for cls in kind.__mro__ if cls.__module__.startswith(('torch.nn', 'torch.ao.nn')))
    if base in (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict) or not hasattr(base, 'forward'):
        return False
    return all(name in HARMLESS or (not hasattr(base, name) and not isinstance(value, property))
               for cls in own for name, value in vars(cls).items())


def bake_weights(network: nn.Module) -> None:
    """Replace, in place, pruned, weight-normalised, spectrally normalised and parametrised weights by their values.

    In evaluation mode they depend on parameters alone. What follows sees plain layers, which can be folded, calibrated
    and counted.
    """
    for module in network.modules():
        if parametrize.is_parametrized(module):
            _bake_parametrizations(module)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
        # torch's own, which it leaves behind: they ask a checkpoint for what is gone, and some cannot be pickled.
        for key, hook in list(module._load_state_dict_pre_hooks.items()):
            if str(getattr(getattr(hook, 'hook', hook), '__module__', '')).startswith('torch.nn.utils.'):
                del module._load_state_dict_pre_hooks[key]


def _bake_parametrizations(module: nn.Module) -> None:
    # Not by parametrize.remove_parametrizations: it changes the class, which copies of the module share.
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}  # type: ignore[union-attr]
    kind = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    module.__class__ = kind
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))
