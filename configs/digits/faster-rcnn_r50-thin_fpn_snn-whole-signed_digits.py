_base_ = './faster-rcnn_r50-thin_fpn_snn-whole-differential_digits.py'

model = dict(time_steps=8, coding='rate')  # activations are means over time
custom_hooks = [dict(type='mmsnn.CalibrationHook', pipeline='signed', num_images=16)]
