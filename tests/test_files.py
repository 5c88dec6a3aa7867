"""A file is the old one or the new one, its folder holds nothing else, and who may read it is up to the umask."""
import json
import os
import stat

import numpy as np
import pytest
import torch

from mmsnn.files import new_file, save_json


def test_a_json_file_leaves_its_neighbours_alone(tmp_path):
    (tmp_path / 'rows.tmp').write_text('of somebody else')
    save_json([1, 2], tmp_path / 'rows.json')
    assert (tmp_path / 'rows.tmp').read_text() == 'of somebody else'
    assert json.loads((tmp_path / 'rows.json').read_text()) == [1, 2]


def test_what_metrics_give_beside_numbers_is_written_as_lists(tmp_path):
    save_json(dict(matrix=torch.eye(2), score=np.float32(.5)), tmp_path / 'rows.json')
    assert json.loads((tmp_path / 'rows.json').read_text()) == dict(matrix=[[1., 0.], [0., 1.]], score=.5)


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path):
    save_json([1], tmp_path / 'rows.json')
    with pytest.raises(AttributeError):
        save_json([object()], tmp_path / 'rows.json')
    assert [path.name for path in tmp_path.iterdir()] == ['rows.json']
    assert json.loads((tmp_path / 'rows.json').read_text()) == [1]


@pytest.mark.parametrize('umask, mode', [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_who_may_read_a_file_is_up_to_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with new_file(tmp_path / 'file') as temporary:
            temporary.write_text('text')
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / 'file').stat().st_mode) == mode
