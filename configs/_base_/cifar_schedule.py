# Appendix B.2 of the paper, networks without batch normalisation
_base_ = './cifar_schedule_bn.py'

optim_wrapper = dict(optimizer=dict(lr=0.005, weight_decay=1e-4))
