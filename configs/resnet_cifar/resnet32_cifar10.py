# ResNet-32 of He et al. (2016): 16 channels, option-A shortcuts, 0.46 M parameters
_base_ = './resnet20_cifar10.py'

model = dict(backbone=dict(depth=32))
