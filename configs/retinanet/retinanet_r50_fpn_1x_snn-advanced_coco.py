_base_ = './retinanet_r50_fpn_1x_snn-none_coco.py'

custom_hooks = [
    dict(
        type='mmsnn.CalibrationHook',
        pipeline='advanced',
        potential='channel',  # the spatial mean: image sizes vary
        num_images=128)
]
