_base_ = './resnet32_snn-none_cifar10.py'

custom_hooks = [
    dict(
        type='mmsnn.CalibrationHook',
        pipeline='advanced',
        potential='position',  # all images have one size
        num_images=256,
        batch_size=32,
        # The paper's 5,000 iterations from 1e-5 hardly move a small network; see docs/reproduce.md.
        iterations=200,
        learning_rate=1e-2)
]
