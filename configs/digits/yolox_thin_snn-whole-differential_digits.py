_base_ = './yolox_thin_digits.py'

custom_imports = dict(imports=['mmsnn'])
model = dict(
    _delete_=True,
    type='mmsnn.SpikingDetector',
    time_steps=4,
    coding='differential',
    detector=_base_.model,
    backbone=dict())  # init_detector of mmdet looks for it
custom_hooks = [dict(type='mmsnn.CalibrationHook', pipeline='differential', sizes=6, narrowing=3, num_images=16)]
