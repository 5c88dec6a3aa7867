_base_ = './faster-rcnn_r50-thin_fpn_snn-whole-signed_digits.py'

custom_hooks = [
    dict(
        type='mmsnn.CalibrationHook',
        pipeline='advanced',
        potential='channel',  # the spatial mean: image sizes vary
        num_images=16,
        # As for backbones; the paper has 5,000 iterations from 1e-5.
        iterations=200,
        learning_rate=3e-3)
]
