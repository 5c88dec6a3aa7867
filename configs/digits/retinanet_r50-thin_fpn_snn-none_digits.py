_base_ = './retinanet_r50-thin_fpn_digits.py'

custom_imports = dict(imports=['mmsnn'])
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsnn.SpikingBackbone',
        time_steps=32,
        backbone=_base_.model.backbone))
load_from = None  # what the ANN's training started from
custom_hooks = [dict(type='mmsnn.CalibrationHook', pipeline='none', num_images=16)]
