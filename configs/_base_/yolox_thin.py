# YOLOX with a quarter of the channels of YOLOX-l (its tiny has three eighths); trains from scratch on a CPU.
norm = dict(type='BN', momentum=0.03, eps=0.001)
activation = dict(type='Swish')

model = dict(
    type='YOLOX',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32),
    backbone=dict(
        type='CSPDarknet',
        deepen_factor=0.33,
        widen_factor=0.25,
        out_indices=(2, 3, 4),
        norm_cfg=norm,
        act_cfg=activation),
    neck=dict(
        type='YOLOXPAFPN',
        in_channels=[64, 128, 256],
        out_channels=64,
        num_csp_blocks=1,
        norm_cfg=norm,
        act_cfg=activation),
    bbox_head=dict(
        type='YOLOXHead',
        num_classes=80,
        in_channels=64,
        feat_channels=64,
        norm_cfg=norm,
        act_cfg=activation),
    train_cfg=dict(assigner=dict(type='SimOTAAssigner', center_radius=2.5)),
    test_cfg=dict(score_thr=0.01, nms=dict(type='nms', iou_threshold=0.65)))
