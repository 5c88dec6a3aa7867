"""What docs/signed.md calls the pipelines that differ in one ingredient; see tools/_tables.py."""
A, GRADIENT, W = 'signed:bias=True', "tune=('bias','threshold')", 'signed:learning_rate=0.01,weights=True,iterations'
WITH_WEIGHTS = f'{A},weights=True,iterations=200,learning_rate=0.01'
INGREDIENTS = {
    'light': "the paper's `light`", 'light:shift=potential': '+ start at half the threshold',
    'light:shift=potential,signed=True': '+ signed spikes',
    'light:shift=potential,signed=True,max_spikes=2': '+ two spikes a step',
    'light:shift=potential,signed=True,max_spikes=4,max_rate=2': '+ four, and thresholds for a rate of 2',
    'signed': 'initial potential instead of the bias: **`signed`**',
    'signed:potential=channel,bias=True': 'potential per channel, then bias',
    A: 'potential per position, then bias (A)', f'{A},signed=False': 'A without negative spikes',
    f'{A},max_spikes=2,max_rate=1': 'A with a rate of 1, two spikes a step',
    f'{A},max_spikes=2': 'A with two spikes a step', f'{A},max_spikes=3': 'A with three',
    f'{A},max_spikes=None': 'A without a bound', f'{A},rounds=2': 'A, two rounds',
    f'{A},bias_per_step=True': 'A, one bias per step', f'{A},threshold=balanced': 'A, local threshold balancing',
    f'{A},rounding=floor': 'A, thresholds scored with the floor', WITH_WEIGHTS: 'A and weights',
    f'{WITH_WEIGHTS},{GRADIENT}': 'A and weights, bias and threshold by gradient',
    f'{W}=200': '`signed` and weights, 200 iterations a layer', f'{W}=1000': 'the same, 1,000 a layer',
    f'{W}=200,blockwise=True': '`signed` and weights by residual block, 200 iterations a block',
    f'{W}=1000,blockwise=True': 'the same, 1,000 a block',
    f'{W}=1000,blockwise=True,{GRADIENT}': 'the same, bias and threshold by gradient'}
DELAYED = {'signed': '`signed`, the first step not read (delayed readout)'}
