# VGG-16 without batch normalisation, with dropout (appendix B.2)
_base_ = ['../_base_/cifar10.py', '../_base_/cifar_schedule.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(type='VGG', depth=16),
    neck=dict(type='GlobalAveragePooling'),  # of a single position: five poolings halve 32 pixels
    head=dict(
        type='StackedLinearClsHead',
        num_classes=10,
        in_channels=512,
        mid_channels=[4096, 4096],
        dropout_rate=0.25,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
