# The paper's ResNet-20 (appendix B.2): four times the channels
_base_ = ['../_base_/cifar10.py', '../_base_/cifar_schedule_bn.py']

custom_imports = dict(imports=['mmsnn'])
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmsnn.CifarResNet', depth=20, base_channels=64, shortcut='B'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=256,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
