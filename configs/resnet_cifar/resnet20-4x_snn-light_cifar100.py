_base_ = './resnet20-4x_snn-none_cifar100.py'

custom_hooks = [
    dict(
        type='mmsnn.CalibrationHook',
        pipeline='light',
        rounds=2,  # the bias is corrected twice: once, as published, leaves much of the error at few steps
        num_images=256,
        batch_size=32)
]
