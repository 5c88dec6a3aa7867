"""Figures show the numbers that they are given."""
import numpy as np
import pytest

pytest.importorskip('matplotlib')

from mmsnn.analysis import plots


@pytest.fixture
def drawn(monkeypatch):
    """The figures that a function has drawn."""
    figures = []
    monkeypatch.setattr(plots.pyplot(), 'close', figures.append)
    yield figures
    monkeypatch.undo()
    plots.pyplot().close('all')


def points(line):
    return [tuple(map(float, point)) for point in line.get_xydata()]


def test_scores_against_time_steps(drawn, tmp_path):
    curves = {'net': {'light': [(8, .7), (2, .5)], 'signed': [(2, .6, .1), (8, .8, .1)]}, 'other': {'light': [(4, .3)]}}
    plots.plot_against_time_steps(curves, {'net': .9}, tmp_path / 'figure.png', 'mAP')
    (figure,) = drawn
    left, right = figure.axes
    assert points(left.containers[0].lines[0]) == [(2, .5), (8, .7)], 'sorted by T'
    assert len(left.containers[1].lines[1]) == 2, 'with caps where there is a deviation'
    assert [line.get_ydata()[0] for line in left.lines if line.get_label() == 'ANN'] == [.9]
    assert [tick.get_text() for tick in left.get_xticklabels()] == ['2', '8'] and right.get_title() == 'other'
    assert left.get_ylabel() == 'mAP' and (tmp_path / 'figure.png').stat().st_size > 1000


def test_scores_against_cost(drawn, tmp_path):
    curves = {'light': [(2, .5, .1, 3e6, 4e6), (4, .7, .1, 6e6, 8e6)]}
    plots.plot_comparison(curves, .9, 5e6, tmp_path / 'figure.png', 'top-1')
    by_steps, by_cost, by_size = drawn[0].axes
    assert points(by_steps.containers[0].lines[0]) == [(2, .5), (4, .7)]
    assert points(by_cost.containers[0].lines[0]) == [(3, .5), (6, .7)], 'millions'
    assert points(by_size.containers[0].lines[0]) == [(4, .5), (8, .7)]
    assert any(list(line.get_xdata()) == [5, 5] for line in by_cost.lines), 'the MACs of the ANN'
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ['ANN', 'light', 'MACs of the ANN']


def test_boxes_of_errors(drawn, tmp_path):
    box = dict(median=.2, q25=.1, q75=.4, q05=.01, q95=1., mean=.3, count=5)
    plots.plot_errors({'light': {'before': [box, box], 'after': [box, dict(box, count=0)]}}, tmp_path / 'figure.png')
    (axis,) = drawn[0].axes
    assert len(axis.patches) == 3, 'no box where a layer has no channel to draw'
    assert sorted({tuple(sorted(set(patch.get_path().vertices[:-1, 1]))) for patch in axis.patches}) == [(.1, .4)]
    assert axis.get_yscale() == 'log'
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ['before', 'after', 'mean']


def test_values_by_layer(drawn, tmp_path):
    rates = {'light': {'T = 2': [.1, .2, .3]}, 'signed': {'T = 2': [.4, .5]}}
    plots.plot_layers(rates, tmp_path / 'figure.png', 'rate')
    assert [points(axis.lines[0]) for axis in drawn[0].axes] == [[(1, .1), (2, .2), (3, .3)], [(1, .4), (2, .5)]]
    assert drawn[0].axes[0].get_ylim()[0] == 0


def test_thresholds_against_time_steps(drawn, tmp_path):
    plots.plot_thresholds([2, 4], {'relu': [.3, .5], 'relu_1': [.6, .9]}, tmp_path / 'figure.png',
                          [('stem', 1, 1), ('layer1', 2, 2)])
    assert [(axis.get_title(), [points(line) for line in axis.lines]) for axis in drawn[0].axes] == [
        ('stem', [[(2, .3), (4, .5)]]), ('layer1', [[(2, .6), (4, .9)]])]


def test_a_colour_means_one_thing(drawn, tmp_path):
    """Methods have the same colour in every figure; what belongs to none, and other states of one, are grey."""
    box = dict(median=.2, q25=.1, q75=.4, q05=.01, q95=1., mean=.3, count=5)
    curves = {name: [(2, .5, .1, 3e6)] for name in ('none', 'light')}
    plots.plot_comparison(curves, .9, 5e6, tmp_path / 'a.png', 'top-1')
    plots.plot_errors({'none': {'before': [box]}, 'light': {'before': [box], 'after': [box]}}, tmp_path / 'b.png')
    plots.plot_layers({name: {'T = 2': [.1], 'T = 4': [.2]} for name in ('none', 'light')}, tmp_path / 'c.png', 'rate')
    bars = {'ANN': dict(products=4.), 'none': dict(products=1., additions=2.), 'light': dict(additions=2.)}
    own = plots.colors_of(['none', 'light'])
    plots.plot_energy(bars, tmp_path / 'd.png', own)
    from matplotlib.colors import to_hex
    scores, errors, rates, energy = drawn
    assert [to_hex(each.lines[0].get_color()) for each in scores.axes[0].containers] == list(own.values())
    assert [to_hex(patch.get_facecolor()) for axis in errors.axes for patch in axis.patches] == [
        plots.GREYS[1], plots.GREYS[1], own['light']]
    assert [to_hex(axis.lines[-1].get_color()) for axis in rates.axes] == list(own.values())
    products, additions = energy.axes[0].containers
    assert {to_hex(bar.get_facecolor()) for bar in products} == {plots.GREYS[0]}
    assert [to_hex(bar.get_facecolor()) for bar in additions][1:] == list(own.values())
    assert len(set(plots.PALETTE)) == len(plots.PALETTE)


def test_stages_are_named(drawn, tmp_path):
    stages = [('stem', 1, 1), ('layer1', 2, 3)]
    plots.plot_layers({'light': {'T = 2': [.1, .2, .3]}}, tmp_path / 'a.png', 'rate', stages)
    (axis,) = drawn[0].axes
    assert [(tick, text.get_text()) for tick, text in zip(axis.get_xticks(), axis.get_xticklabels())] == [
        (1, 'stem'), (2.5, 'layer1')]


def test_energy_is_stacked(drawn, tmp_path):
    plots.plot_energy({'ANN': {'products': 4.}, 'SNN': {'products': 1., 'additions': 2., 'nothing': 0.}},
                      tmp_path / 'figure.png')
    (axis,) = drawn[0].axes
    bars = {stack.get_label(): [(bar.get_x(), bar.get_width()) for bar in stack] for stack in axis.containers}
    assert bars == {'products': [(0, 4), (0, 1)], 'additions': [(4, 0), (1, 2)]}


def test_pictures_stand_where_they_belong(drawn, tmp_path):
    white, black = np.full((4, 6, 3), 255, np.uint8), np.zeros((4, 6, 3), np.uint8)
    plots.plot_pictures({'one': {'ANN': white, 'T = 2': black}, 'two': {'T = 2': white}}, tmp_path / 'figure.png')
    top_left, top_right, left, right = drawn[0].axes
    assert [axis.get_title() for axis in (top_left, top_right)] == ['ANN', 'T = 2'] and left.get_ylabel() == 'two'
    assert not left.images, 'no picture was given'
    for axis, picture in ((top_left, white), (top_right, black), (right, white)):
        np.testing.assert_array_equal(axis.images[0].get_array(), picture)


def test_whoever_draws_already_keeps_the_backend():
    pyplot = plots.pyplot()
    before = pyplot.get_backend()
    try:
        pyplot.switch_backend('svg')  # a notebook has one of its own
        assert plots.pyplot().get_backend() == 'svg'
    finally:
        pyplot.switch_backend(before)
