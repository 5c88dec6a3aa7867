_base_ = './faster-rcnn_r50-thin_fpn_bccd.py'

custom_imports = dict(imports=['mmsnn'])
model = dict(
    _delete_=True,
    type='mmsnn.SpikingDetector',
    time_steps=4,
    coding='differential',
    detector=_base_.model,
    backbone=dict())  # init_detector of mmdet looks for it
load_from = None  # what the ANN's training started from
custom_hooks = [dict(type='mmsnn.CalibrationHook', pipeline='differential', sizes=6, narrowing=3, num_images=16)]
