# Every fifth test image, for quick comparisons
_base_ = './resnet20_snn-signed_cifar10.py'

test_dataloader = dict(dataset=dict(indices=list(range(0, 10000, 5))))
