_base_ = './resnet20_snn-none_cifar10.py'

custom_hooks = [dict(type='mmsnn.CalibrationHook', pipeline='differential', num_images=256, batch_size=32)]
