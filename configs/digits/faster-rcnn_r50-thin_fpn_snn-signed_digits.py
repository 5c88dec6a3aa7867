_base_ = './faster-rcnn_r50-thin_fpn_snn-none_digits.py'

custom_hooks = [dict(type='mmsnn.CalibrationHook', pipeline='signed', num_images=16)]
