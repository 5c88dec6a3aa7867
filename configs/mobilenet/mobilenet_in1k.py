# MobileNet (V1), from timm; `pretrained=True` in the model loads timm's weights
_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs32.py', 'mmpretrain::_base_/schedules/imagenet_bs256.py',
    'mmpretrain::_base_/default_runtime.py'
]

model = dict(type='TimmClassifier', model_name='mobilenetv1_100')
