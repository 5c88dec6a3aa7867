_base_ = './retinanet_r50-thin_fpn_snn-none_digits.py'

custom_hooks = [
    dict(
        type='mmsnn.CalibrationHook',
        pipeline='advanced',
        potential='channel',  # the spatial mean: image sizes vary
        num_images=16,
        # The paper's 5,000 iterations from 1e-5 take hours on a CPU; this was chosen on the validation images.
        iterations=200,
        learning_rate=3e-3)
]
