import pytest
import torch

import mmsnn
from mmsnn import FiringRule, IFNeuron, clip_floor, clip_round, firing_rate, integrate_and_burst, integrate_and_fire


def test_worked_out_by_hand():
    # v: .6 -> .6; 1.2 -> spike, .2; .8; 1.4 -> spike, .4
    potential = torch.zeros(1, 1)
    spikes = integrate_and_fire(torch.full((4, 1, 1), .6), potential, torch.ones(1))
    assert spikes.flatten().tolist() == [0, 1, 0, 1]
    assert potential.item() == pytest.approx(.4)


def test_reset_by_subtraction_keeps_what_is_above_the_threshold():
    potential = torch.zeros(1, 1)
    currents = torch.tensor([2.5, 0., 0., -1.]).view(4, 1, 1)
    spikes = integrate_and_fire(currents, potential, torch.ones(1))
    assert spikes.flatten().tolist() == [1, 1, 0, 0]
    assert potential.item() == -.5


def test_bias_is_a_current_and_threshold_is_the_height_of_a_spike():
    potential = torch.zeros(1, 2, 1, 1)
    threshold = torch.tensor([.5, 2.]).view(2, 1, 1)
    spikes = integrate_and_fire(torch.zeros(4, 1, 2, 1, 1), potential, threshold, torch.full((2, 1, 1), .5))
    assert spikes[:, 0, :, 0, 0].tolist() == [[.5, 0], [.5, 0], [.5, 0], [.5, 2]]


def dyadic(shape, low, high):
    """Random numbers that float32 adds up without rounding, so that closed forms can be compared exactly."""
    return torch.randint(low, high, shape) / 1024


@pytest.mark.parametrize('time_steps', [1, 2, 3, 7, 8, 16, 33, 64, 256])
def test_constant_current_gives_the_closed_forms_exactly(time_steps):
    current = dyadic((4000,), -3000, 5000)
    threshold = dyadic((4000,), 1, 4000)
    for start, closed_form in ((torch.zeros_like(threshold), clip_floor), (threshold / 2, clip_round)):
        # In units of h/T so that dividing by T or h does not round either.
        spikes = integrate_and_fire(current.expand(time_steps, 1, -1), start.clone()[None], threshold)
        count = (spikes[:, 0] > 0).sum(0)
        expected = torch.floor((time_steps * current.double() + start) / threshold).clamp(0, time_steps)
        assert torch.equal(count.double(), expected)
        torch.testing.assert_close(spikes.mean(0)[0], closed_form(current, threshold, time_steps))


def test_bias_shift_and_potential_shift_have_the_same_rate():
    current, threshold, time_steps = dyadic((4000,), 0, 3000), dyadic((4000,), 1, 2000), 16
    by_potential = integrate_and_fire(current.expand(time_steps, 1, -1), threshold[None] / 2, threshold)
    by_bias = integrate_and_fire(current.expand(time_steps, 1, -1), torch.zeros(1, 4000), threshold,
                                 threshold / (2 * time_steps))
    assert torch.equal(by_potential.sum(0), by_bias.sum(0))
    assert not torch.equal(by_potential, by_bias), 'the potential start fires earlier'


def test_negative_current_never_fires_and_is_remembered():
    potential = torch.zeros(1, 1)
    spikes = integrate_and_fire(torch.tensor([-2., 1., 1., 1.]).view(4, 1, 1), potential, torch.ones(1))
    assert spikes.flatten().tolist() == [0, 0, 0, 1]


def test_charge_is_conserved():
    currents = torch.randn(32, 2, 3, 4, 4, dtype=torch.float64)
    potential = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    spikes = integrate_and_fire(currents, potential, torch.tensor([.3, .5, .7], dtype=torch.float64).view(3, 1, 1))
    torch.testing.assert_close(currents.sum(0), spikes.sum(0) + potential)


def test_straight_through_gradient():
    current = torch.tensor([-.2, .3, .8, 1.7], requires_grad=True)
    firing_rate(current, 1., 8, .5).sum().backward()
    assert current.grad.tolist() == [0, 1, 1, 0], 'one inside, zero where the rate is clipped'


def test_module_is_the_activation_it_replaced():
    x = torch.tensor([-1., 3., 9.])
    assert IFNeuron()(x).tolist() == [0, 3, 9]
    assert IFNeuron(6.)(x).tolist() == [0, 3, 6]


def test_state_of_any_granularity_loads_into_a_fresh_neuron():
    trained = IFNeuron()
    trained.threshold, trained.initial_potential = torch.rand(3), torch.rand(3, 4, 5)
    fresh = IFNeuron()
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.initial_potential, trained.initial_potential)
    with pytest.raises(ValueError, match="potential='channel'"):
        fresh.start(torch.zeros(1, 3, 8, 8))


def burst(currents, threshold, time_steps, initial=None, **rule):
    potential = torch.zeros_like(currents[0]) if initial is None else initial.clone()
    count = torch.zeros_like(potential)
    spikes = integrate_and_burst(currents, potential, count, threshold, None, time_steps, FiringRule(**rule))
    return spikes, potential, count


def test_signed_neuron_takes_back_what_it_fired_too_early():
    # u: 1.5 fires (.5), -.5 takes back (.5), -.5: nothing left to take back, .5, 1.5 fires (.5)
    currents = torch.tensor([1.5, -1., -1., 1., 1.]).view(5, 1)
    spikes, potential, count = burst(currents, torch.ones(1), 5, signed=True)
    assert spikes.flatten().tolist() == [1, -1, 0, 0, 1]
    assert potential.item() == .5 and count.item() == 1


def test_bursts_are_bounded_by_step_and_in_all():
    # u: 3.5 fires 2 (1.5), 1.5 fires 1 (.5), 4.5 would fire 2, but only T = 4 are allowed in all: 1 (3.5)
    currents = torch.tensor([3.5, 0., 4., 0.]).view(4, 1)
    spikes, potential, count = burst(currents, torch.ones(1), 4, max_spikes=2)
    assert spikes.flatten().tolist() == [2, 1, 1, 0]
    assert potential.item() == 3.5 and count.item() == 4


def test_what_is_not_clipped_is_bounded_by_step_and_by_the_ceiling():
    currents = torch.full((4, 1), 3.)
    spikes, _, count = burst(currents, torch.ones(1), 4, max_spikes=2, clip=False)
    assert spikes.flatten().tolist() == [2, 2, 2, 2] and count.item() == 8
    # A ceiling of 1.3 is worth 5.2 spikes of 1 in 4 steps, to the nearest 5; one of 1.4, 5.6, or 6.
    for ceiling, expected in ((1.3, [2, 2, 1, 0]), (1.4, [2, 2, 2, 0])):
        rule = FiringRule(max_spikes=2, clip=False).under(ceiling)
        spikes, _, _ = burst(currents, torch.ones(1), 4, max_spikes=2, clip=False, ceiling=ceiling)
        assert spikes.flatten().tolist() == expected
        assert rule.rate(torch.tensor([3.]), torch.ones(1), 4, 0.).item() == sum(expected) / 4
        assert FiringRule(max_spikes=2).under(ceiling) == FiringRule(max_spikes=2), 'a rate of 1 clips below'
    assert FiringRule(max_spikes=2, clip=False).rate(torch.tensor([1.6]), 1., 4, 0.).item() == 1.5
    with pytest.raises(ValueError, match='clip=False takes effect where max_spikes'):
        mmsnn.Pipeline(clip=False)


@pytest.mark.parametrize('max_rate', [1, 3])
@pytest.mark.parametrize('time_steps', [1, 2, 5, 8, 32])
def test_unbounded_signed_bursts_are_the_quantised_sum_in_any_order(time_steps, max_rate):
    currents, threshold = dyadic((time_steps, 4000), -3000, 4000), dyadic((4000,), 1, 4000)
    initial = dyadic((4000,), -2000, 4000)
    rule = dict(signed=True, max_spikes=max_rate * time_steps, max_rate=max_rate)
    spikes, potential, count = burst(currents, threshold, time_steps, initial, **rule)
    charge = currents.double().sum(0) + initial
    assert torch.equal(count.double(), torch.floor(charge / threshold).clamp(0, max_rate * time_steps))
    # Charge is conserved, exactly; and a permutation of the currents changes when spikes come, not how many.
    assert torch.equal(charge, spikes.double().sum(0) + potential.double())
    _, _, permuted = burst(currents[torch.randperm(time_steps)], threshold, time_steps, initial, **rule)
    assert torch.equal(permuted, count)


def test_plain_rule_of_the_general_neuron_is_the_plain_neuron():
    currents, threshold = dyadic((16, 4000), -2000, 4000), dyadic((4000,), 1, 4000)
    spikes, potential, _ = burst(currents, threshold, 16)
    plain = torch.zeros(4000)
    assert torch.equal(spikes, integrate_and_fire(currents, plain, threshold)) and torch.equal(potential, plain)
