# To choose methods and settings by: every 25th training image is tested, calibration draws from the others.
_base_ = './resnet20_snn-signed_cifar10.py'

train_dataloader = dict(dataset=dict(indices=[index for index in range(50000) if index % 25]))
test_dataloader = dict(
    dataset=dict(data_prefix='train', indices=list(range(0, 50000, 25))))
