_base_ = './faster-rcnn_r50-thin_fpn_snn-none_digits.py'

custom_hooks = [
    dict(
        type='mmsnn.CalibrationHook',
        pipeline='signed',
        num_images=16,
        # Thin layers leave much to quantisation, which other weights can lower; chosen on the validation images.
        weights=True,
        iterations=200,
        learning_rate=3e-3)
]
