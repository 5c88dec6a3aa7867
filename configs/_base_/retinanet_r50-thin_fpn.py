# RetinaNet on the full ResNet-50 topology with a quarter of the channels; trains from scratch on a CPU.
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

model = dict(
    backbone=dict(
        base_channels=16,
        frozen_stages=-1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64),
    bbox_head=dict(
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        # Half the usual size: the objects of these data sets are small in pixels.
        anchor_generator=dict(octave_base_scale=2)))
