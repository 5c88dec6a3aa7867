_base_ = 'mmseg::fcn/fcn_r50-d8_4xb2-80k_cityscapes-512x1024.py'

custom_imports = dict(imports=['mmsnn'])
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsnn.SpikingBackbone',
        time_steps=4,
        coding='differential',
        backbone=_base_.model.backbone))
custom_hooks = [dict(type='mmsnn.CalibrationHook', pipeline='differential', sizes=6, num_images=32)]
# The checkpoint of the ANN, to give to tools/calibrate.py (a URL works there too).
load_from = ('https://mmassets.onedl.ai/mmsegmentation/v0.5/fcn/fcn_r50-d8_512x1024_80k_cityscapes/'
             'fcn_r50-d8_512x1024_80k_cityscapes_20200606_113019-03aa804d.pth')
