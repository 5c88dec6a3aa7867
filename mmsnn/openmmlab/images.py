"""Which images a config calibrates on: its training data set, read through the transforms of its test."""
import copy
from pathlib import Path

from mmengine.config import Config


def prepared(dataset, index: int) -> dict:
    """What the transforms of a data set make of one image.

    Raises:
        ValueError: they fail, for example because the file is damaged.
    """
    try:
        return dataset[index]
    except Exception as error:  # each reader has its own
        raise ValueError(f'image {index} of the calibration data set cannot be prepared ({type(error).__name__}: '
                         f'{error}): repair it, or take it out of the data set') from error


def training_set(cfg: Config) -> dict | None:
    """The training data set of a config, if it has any."""
    return (cfg.get('train_dataloader') or {}).get('dataset')


def test_set(cfg: Config) -> dict:
    """The test data set of a config, empty where it has none."""
    return (cfg.get('test_dataloader') or {}).get('dataset') or {}


def data_set(cfg: Config, own: dict | None) -> dict:
    """The config of the data set that calibration images come from.

    Args:
        cfg: whose training data set it is, read through the transforms of the test, where there is no other.
        own: another, which may have transforms of its own.

    Raises:
        ValueError: there is none.
    """
    dataset = copy.deepcopy(own or training_set(cfg))
    if dataset is None:
        raise ValueError('the config has no train_dataloader to draw calibration images from: give CalibrationHook a '
                         'dataset, or images')
    # One of the user's own may give what needs no transforms, as the test's then does too.
    if own is None or find_pipeline(dataset) is None and find_pipeline(test_set(cfg)) is not None:
        replace_pipeline(dataset, test_pipeline(cfg))
    return dataset


def test_pipeline(cfg: Config) -> list[dict]:
    """The transforms of the test data set (wherever wrappers have put it), which calibration images go through."""
    pipeline = find_pipeline(test_set(cfg))
    if pipeline is None:
        raise ValueError('cfg.test_dataloader.dataset has no pipeline to prepare calibration images with; give '
                         'CalibrationHook a dataset of its own')
    if any(getattr(transform['type'], '__name__', transform['type']) == 'TestTimeAug' for transform in pipeline):
        raise ValueError('test-time augmentation makes several images of each: calibrate first, without --tta '
                         '(tools/calibrate.py), and test the checkpoint that it writes with --tta')
    return pipeline


def find_pipeline(dataset: dict) -> list[dict] | None:
    """Depth-first search for the transforms of a data set config."""
    if 'pipeline' in dataset:
        return dataset['pipeline']
    inner = dataset.get('dataset', dataset.get('datasets', []))
    for child in inner if isinstance(inner, (list, tuple)) else [inner]:
        found = find_pipeline(child)
        if found is not None:
            return found
    return None


def replace_pipeline(dataset: dict, pipeline: list[dict]) -> None:
    """Set the transforms of every data set in a (possibly nested) config; wrappers lose transforms of their own."""
    inner = dataset.get('dataset', dataset.get('datasets'))
    if inner is None:
        dataset['pipeline'] = pipeline
        return
    if 'pipeline' in dataset:
        dataset['pipeline'] = []  # some, such as MultiImageMixDataset, insist on one
    for child in inner if isinstance(inner, (list, tuple)) else [inner]:
        replace_pipeline(child, pipeline)


def image_source(dataset: dict) -> str:
    """Name a data set as a checkpoint remembers it: its kind and the end of its path, whatever machine it is on."""
    inner = dataset.get('dataset', dataset.get('datasets'))
    if inner is not None:
        return ' + '.join(map(image_source, inner if isinstance(inner, (list, tuple)) else [inner]))
    prefix = dataset.get('data_prefix') or ''
    where = dataset.get('ann_file') or (prefix if isinstance(prefix, str) else next(iter(prefix.values()), ''))
    kind = dataset['type'] if isinstance(dataset['type'], str) else dataset['type'].__name__
    return ' '.join([kind, '/'.join(Path(dataset.get('data_root') or '', where).parts[-3:])])
