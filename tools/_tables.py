"""Which command computes which table of README.md and docs/, and which tables none does: for tools/recompute.py."""
from _tables_classifiers import CLASSIFIERS
from _tables_detectors import DETECTORS
from _tables_levels import LEVELS
from _tables_paper import PAPER_NETWORKS

TABLES = [*DETECTORS, *CLASSIFIERS, *LEVELS, *PAPER_NETWORKS]

# Tables with numbers that no command here computes: why, and for each its page and how its first line begins.
LEFT_OUT = {
    'times and peaks of memory, which no two machines share': [
        ('docs/speed.md', ''), ('docs/reproduce.md', 'pipeline | T | minutes')],
    'measured on a GPU': [
        ('docs/paper_networks.md', 'ResNet-20 (4x), ANN'), ('docs/paper_networks.md', 'VGG-16 with BN, ANN'),
        ('docs/paper_networks.md', ' | values a step')],
    'its program stands on the page': [
        ('docs/theory.md', 'pipeline | clipping'), ('docs/near_lossless.md', 'network | pipeline')],
    'from a script that is not in the repository, as the page says': [
        ('docs/near_lossless.md', 'levels | pipeline | T = 1'), ('docs/near_lossless.md', '9 levels'),
        ('docs/near_lossless.md', '13 levels'),
        ('docs/near_lossless.md', 'network, levels'), ('docs/results.md', 'classes from'),
        ('docs/how_it_works.md', ' | T = 2')],
    'rows of other tables, with which tests/test_docs.py compares them': [
        ('README.md', 'detector | what spikes'), ('README.md', 'ANN | data'),
        ('docs/results.md', 'method (ANN: 91.73)')],
    'tests in other environments': [('docs/stacks.md', 'stack')],
    'choices, not measurements': [
        ('docs/classification.md', 'pipeline | thresholds'), ('docs/near_lossless.md', 'pipeline | what a neuron')],
}
