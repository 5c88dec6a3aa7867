# Every tenth test image, for comparisons of many methods
_base_ = './vgg16bn_snn-none_cifar10.py'

test_dataloader = dict(dataset=dict(indices=list(range(0, 10000, 10))))
