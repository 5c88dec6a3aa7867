_base_ = './vgg16bn_snn-none_cifar10.py'

custom_hooks = [
    dict(
        type='mmsnn.CalibrationHook',
        pipeline='advanced',
        potential='position',  # all images have one size
        num_images=256,
        batch_size=32,
        # The paper has 5,000 iterations from 1e-5, 25 times the work; see docs/classification.md.
        iterations=200,
        learning_rate=1e-2)
]
