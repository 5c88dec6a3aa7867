_base_ = [
    '../_base_/faster-rcnn_r50-thin_fpn.py',
    '../_base_/digits.py',
    '../_base_/thin_runtime.py',
]

model = dict(roi_head=dict(bbox_head=dict(num_classes=10)))

max_epochs = 5
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min_ratio=0.01, convert_to_iter_based=True),
]
# Starts from the backbone trained before, which halves the epochs; what has another shape (neck, heads) is skipped.
load_from = 'checkpoints/retinanet_r50-thin_fpn_digits.pth'
