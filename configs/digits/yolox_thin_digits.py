_base_ = [
    '../_base_/yolox_thin.py',
    '../_base_/digits.py',
    '../_base_/thin_runtime.py',
]

model = dict(bbox_head=dict(num_classes=10))

max_epochs = 5
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min_ratio=0.01, convert_to_iter_based=True),
]
