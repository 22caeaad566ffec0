"""Batches visit every example once an epoch, in an order that is a pure function of (seed, epoch)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from fwdgrad.data import Batches, Normalization, Split


def numbered_split(size: int = 23) -> Split:
    """A split whose inputs and targets both tell the index of the example."""
    index = torch.arange(size)
    return Split(index.float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous(), index)


def byte_split(size: int = 23) -> Split:
    values = torch.arange(size * 12, dtype=torch.int64).remainder(256).to(torch.uint8).view(size, 3, 2, 2)
    mean, std = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1), torch.tensor([4.0, 5.0, 6.0]).view(3, 1, 1)
    return Split(values, torch.arange(size), Normalization(mean, std))


def visited(batches: Batches, epoch: int, start: int = 0) -> list[int]:
    return torch.cat([targets for _, targets in batches.epoch(epoch, start)]).tolist()


def same(left: list, right: list) -> bool:
    pairs = itertools.zip_longest(left, right, fillvalue=(torch.empty(0), torch.empty(0)))
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4, 22, 23, 24, 1000])
def test_every_example_is_visited_exactly_once_an_epoch(batch_size, shuffle):
    batches = Batches(numbered_split(), batch_size, shuffle=shuffle)
    for epoch in range(3):
        seen = list(batches.epoch(epoch))
        assert len(seen) == batches.steps_per_epoch == len(batches) == math.ceil(23 / batch_size)
        assert [len(targets) for _, targets in seen[:-1]] == [batch_size] * (len(seen) - 1)
        assert sorted(torch.cat([targets for _, targets in seen]).tolist()) == list(range(23))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4, 22, 23])
def test_drop_last_leaves_out_the_smaller_batch_and_nothing_else(batch_size, shuffle):
    complete = Batches(numbered_split(), batch_size, shuffle=shuffle)
    dropped = Batches(numbered_split(), batch_size, shuffle=shuffle, drop_last=True)
    assert dropped.steps_per_epoch == 23 // batch_size
    seen = list(dropped.epoch(1))
    assert {len(targets) for _, targets in seen} == {batch_size}
    assert same(seen, list(complete.epoch(1))[: 23 // batch_size])


@pytest.mark.parametrize("split", [numbered_split(), byte_split()], ids=["float", "uint8"])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_starting_at_k_gives_the_tail_of_the_epoch(split, shuffle, drop_last):
    batches = Batches(split, 4, seed=5, shuffle=shuffle, drop_last=drop_last)
    whole = list(batches.epoch(2))
    for start in range(batches.steps_per_epoch + 1):
        assert same(list(Batches(split, 4, 5, shuffle, drop_last).epoch(2, start)), whole[start:])


def test_inputs_and_targets_belong_together():
    for inputs, targets in Batches(numbered_split(), 4).epoch(0):
        assert inputs.shape == (len(targets), 1, 2, 2)
        assert torch.equal(inputs[:, 0, 0, 0], targets.float())


def test_the_order_depends_on_seed_and_epoch_alone():
    split = numbered_split(100)
    orders = {(seed, epoch): tuple(visited(Batches(split, 8, seed), epoch)) for seed in range(4) for epoch in range(4)}
    assert len(set(orders.values())) == 16
    for (seed, epoch), order in reversed(orders.items()):
        assert tuple(visited(Batches(split, 17, seed), epoch)) == order  # nor on what was asked for before


def test_every_position_is_equally_likely():
    # Over E epochs, how often example 0 comes at each of the 23 positions has variance E p (1 - p), p = 1/23.
    batches, epochs = Batches(numbered_split(), 23), 2300
    counts = torch.stack([(batches.order(epoch) == 0).nonzero()[0, 0] for epoch in range(epochs)]).bincount(
        minlength=23
    )
    deviation = (counts - epochs / 23).abs().max() / math.sqrt(epochs / 23 * (22 / 23))
    assert deviation < 4.5  # 23 positions beyond 4.5 standard deviations: probability 2e-4


def test_without_shuffling_the_order_is_that_of_the_split():
    batches = Batches(numbered_split(), 4, seed=3, shuffle=False)
    assert visited(batches, 0) == visited(batches, 7) == batches.order(3).tolist() == list(range(23))


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_global_generator_is_neither_read_nor_advanced(shuffle):
    batches = Batches(byte_split(), 4, shuffle=shuffle)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = visited(batches, 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert visited(batches, 0) == first


def test_shuffled_batches_are_copies():
    split = numbered_split()
    for inputs, targets in Batches(split, 4).epoch(0):
        inputs.fill_(-1.0)
        targets.fill_(-1)
    assert torch.equal(split.inputs, numbered_split().inputs)
    assert torch.equal(split.targets, numbered_split().targets)


def test_epochs_may_run_side_by_side():
    batches = Batches(numbered_split(), 4)
    together = list(zip(batches.epoch(0), batches.epoch(1), strict=True))
    assert same([a for a, _ in together], list(batches.epoch(0)))
    assert same([b for _, b in together], list(batches.epoch(1)))


@pytest.mark.parametrize("shuffle", [True, False])
def test_bytes_are_normalised_batch_by_batch(shuffle):
    split = byte_split()
    stored = split.inputs.clone()
    mean, std = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1), torch.tensor([4.0, 5.0, 6.0]).view(3, 1, 1)
    for inputs, targets in Batches(split, 5, shuffle=shuffle).epoch(0):
        assert inputs.dtype == torch.float32
        torch.testing.assert_close(inputs, (stored[targets].float() - mean) / std)
    assert torch.equal(split.inputs, stored)


def test_bad_arguments_are_refused_at_once():
    split = numbered_split()
    with pytest.raises(ValueError, match=r"batch_size must be at least 1, got 0"):
        Batches(split, 0)
    with pytest.raises(ValueError, match=r"batch_size must be at most 23, .* drop_last=True, got 24"):
        Batches(split, 24, drop_last=True)
    with pytest.raises(ValueError, match=r"at least one example, got an empty one"):
        Batches(Split(split.inputs[:0], split.targets[:0]), 4)
    batches = Batches(split, 4)
    with pytest.raises(ValueError, match=r"epoch must be 0 or more, got -1"):
        batches.epoch(-1)
    for start in (-1, 7):
        with pytest.raises(ValueError, match=rf"start must be between 0 and 6, .* got {start}"):
            batches.epoch(0, start)


def test_a_split_refuses_what_does_not_fit_together():
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(4,\)"):
        Split(torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"uint8 need a normalization"):
        Split(torch.zeros(3, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"float32 come with a normalization"):
        Split(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), Normalization(torch.zeros(1), torch.ones(1)))


@pytest.mark.gpu
@pytest.mark.parametrize("make_split", [numbered_split, byte_split])
def test_the_order_is_the_same_on_every_device(make_split):
    batches, moved = Batches(make_split(), 4), Batches(make_split().to("cuda"), 4)
    for (inputs, targets), (other_inputs, other_targets) in zip(batches.epoch(3), moved.epoch(3), strict=True):
        assert other_inputs.is_cuda
        assert torch.equal(targets, other_targets.cpu())
        torch.testing.assert_close(inputs, other_inputs.cpu())
