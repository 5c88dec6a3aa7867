_base_ = './retinanet_r50_fpn_1x_snn-none_coco.py'

custom_hooks = [dict(type='mmsnn.CalibrationHook', pipeline='signed', num_images=128)]
