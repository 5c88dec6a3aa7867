_base_ = [
    '../_base_/retinanet_r50-thin_fpn.py',
    '../_base_/digits.py',
    '../_base_/thin_runtime.py',
]

model = dict(bbox_head=dict(num_classes=10))
