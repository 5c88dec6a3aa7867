_base_ = 'mmpretrain::vgg/vgg16_8xb32_in1k.py'

custom_imports = dict(imports=['mmsnn'])
model = dict(_delete_=True, type='mmsnn.SpikingClassifier', time_steps=32, classifier=_base_.model)
custom_hooks = [dict(type='mmsnn.CalibrationHook', pipeline='none', num_images=1024, batch_size=32)]
# The checkpoint of the ANN, to give to tools/test.py or tools/calibrate.py (a URL works there too).
load_from = ('https://download.openmmlab.com/mmclassification/v0/vgg/'
             'vgg16_batch256_imagenet_20210208-db26f1a5.pth')
