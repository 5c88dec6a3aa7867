_base_ = 'mmpose::body_2d_keypoint/topdown_heatmap/coco/td-hm_res50_8xb64-210e_coco-256x192.py'

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
load_from = ('https://download.openmmlab.com/mmpose/v1/body_2d_keypoint/topdown_heatmap/coco/'
             'td-hm_res50_8xb64-210e_coco-256x192-04af38ce_20220923.pth')
