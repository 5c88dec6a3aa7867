_base_ = './resnet32_snn-none_cifar10.py'

custom_hooks = [
    dict(
        type='mmsnn.CalibrationHook',
        pipeline='light',
        rounds=2,  # the bias is corrected twice: once, as published, leaves much of the error at few steps
        num_images=256,
        batch_size=32)
]
