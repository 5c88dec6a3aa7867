"""mmsnn inside mmengine, mmdet and mmpretrain: wrappers, hook, metrics."""
