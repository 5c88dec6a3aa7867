# ResNet-32 of He et al. (2016): 16 channels, option-A shortcuts, 0.46 M parameters
_base_ = ['../_base_/cifar10.py', '../_base_/cifar_schedule_bn.py']

custom_imports = dict(imports=['mmsnn'])
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmsnn.CifarResNet', depth=32, base_channels=16, shortcut='A'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
