_base_ = './mobilenet_snn-none_in1k.py'

custom_hooks = [
    dict(
        type='mmsnn.CalibrationHook',
        pipeline='signed',
        potential='position',  # all images have one size
        num_images=1024,
        batch_size=32)
]
