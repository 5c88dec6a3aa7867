_base_ = './mobilenet-v2_snn-none_in1k.py'

custom_hooks = [
    dict(
        type='mmsnn.CalibrationHook',
        pipeline='signed',
        potential='position',  # all images have one size
        # A depthwise convolution has few inputs over which errors could average out: more levels. Chosen on
        # calibration images.
        max_rate=4,
        max_spikes=8,
        num_images=1024,
        batch_size=32)
]
