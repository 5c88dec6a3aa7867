_base_ = [
    '../_base_/retinanet_r50-thin_fpn.py',
    '../_base_/bccd.py',
    '../_base_/thin_runtime.py',
]

model = dict(bbox_head=dict(num_classes=3))

max_epochs = 16
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min_ratio=0.01, convert_to_iter_based=True),
]
# 205 images are too few to train from scratch: start from the digits.
load_from = 'checkpoints/retinanet_r50-thin_fpn_digits.pth'
