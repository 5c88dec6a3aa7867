_base_ = './faster-rcnn_r50-thin_fpn_snn-none_digits.py'

custom_hooks = [
    dict(
        type='mmsnn.CalibrationHook',
        pipeline='advanced',
        potential='channel',  # the spatial mean: image sizes vary
        num_images=32)
]
