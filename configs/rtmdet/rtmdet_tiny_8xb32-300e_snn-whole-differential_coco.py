_base_ = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'

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
load_from = ('https://download.openmmlab.com/mmdetection/v3.0/rtmdet/rtmdet_tiny_8xb32-300e_coco/'
             'rtmdet_tiny_8xb32-300e_coco_20220902_112414-78e30dcc.pth')
