_base_ = './vgg16_snn-none_cifar100.py'

custom_hooks = [
    dict(
        type='mmsnn.CalibrationHook',
        pipeline='signed',
        potential='position',  # all images have one size
        num_images=256,
        batch_size=32)
]
