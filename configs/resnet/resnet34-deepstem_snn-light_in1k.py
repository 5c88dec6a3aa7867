_base_ = './resnet34-deepstem_snn-none_in1k.py'

custom_hooks = [dict(type='mmsnn.CalibrationHook', pipeline='light', num_images=1024, batch_size=32)]
