_base_ = './resnet32_cifar10.py'

custom_imports = dict(imports=['mmsnn'])
model = dict(_delete_=True, type='mmsnn.SpikingClassifier', time_steps=32, classifier=_base_.model)
custom_hooks = [dict(type='mmsnn.CalibrationHook', pipeline='none', num_images=256, batch_size=32)]
