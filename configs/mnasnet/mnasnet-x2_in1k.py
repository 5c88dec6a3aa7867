# MNasNet with twice the channels, from torchvision
_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs32.py', 'mmpretrain::_base_/schedules/imagenet_bs256.py',
    'mmpretrain::_base_/default_runtime.py'
]

custom_imports = dict(imports=['mmsnn'])
model = dict(type='mmsnn.TorchClassifier', network=dict(type='torchvision.models.MNASNet', alpha=2.0))
