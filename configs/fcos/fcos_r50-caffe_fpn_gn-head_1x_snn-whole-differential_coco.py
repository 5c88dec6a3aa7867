_base_ = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'

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
load_from = ('https://download.openmmlab.com/mmdetection/v2.0/fcos/fcos_r50_caffe_fpn_gn-head_1x_coco/'
             'fcos_r50_caffe_fpn_gn-head_1x_coco-821213aa.pth')
