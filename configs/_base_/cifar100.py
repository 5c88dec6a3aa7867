# CIFAR-100 as folders of images, data/cifar100/{train,test}/<class>/*.png
_base_ = './cifar10.py'

data_root = 'data/cifar100/'
data_preprocessor = dict(num_classes=100)
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
