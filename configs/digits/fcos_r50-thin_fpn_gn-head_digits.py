_base_ = [
    '../_base_/fcos_r50-thin_fpn_gn-head.py',
    '../_base_/digits.py',
    '../_base_/thin_runtime.py',
]

model = dict(bbox_head=dict(num_classes=10))
# Starts from the backbone and the pyramid trained before; what has another shape (the head) is skipped.
load_from = 'checkpoints/retinanet_r50-thin_fpn_digits.pth'
