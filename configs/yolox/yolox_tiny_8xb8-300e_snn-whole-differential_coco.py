_base_ = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'

custom_imports = dict(imports=['mmsnn'])
model = dict(
    _delete_=True,
    type='mmsnn.SpikingDetector',
    time_steps=4,
    coding='differential',
    detector=_base_.model,
    backbone=dict())  # init_detector of mmdet looks for it
custom_hooks = [dict(type='mmsnn.CalibrationHook', pipeline='differential', sizes=8, num_images=128)]
# The checkpoint of the ANN, to give to tools/test.py or tools/calibrate.py (a URL works there too).
load_from = ('https://download.openmmlab.com/mmdetection/v2.0/yolox/yolox_tiny_8x8_300e_coco/'
             'yolox_tiny_8x8_300e_coco_20211124_171234-b4047906.pth')
