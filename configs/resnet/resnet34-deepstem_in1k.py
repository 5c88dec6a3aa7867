# The paper's ResNet-34 (appendix B.1): deep stem, average instead of max pooling
_base_ = 'mmpretrain::resnet/resnet34_8xb32_in1k.py'

custom_imports = dict(imports=['mmsnn'])
model = dict(
    backbone=dict(_delete_=True, type='mmsnn.AveragePooled', network=dict(type='ResNetV1c', depth=34)))
