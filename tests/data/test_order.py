"""The order of examples and the feed of batches: functions of (seed, step), shared out to ranks."""

import itertools

import pytest
import torch

from fogzo.data import DataOrder, Feed, Selection, Subset, TensorSplit
from fogzo.data.base import Split
from fogzo.ranks import share


def numbers(examples=50):
    return TensorSplit(torch.arange(examples * 2.0).view(examples, 2), torch.arange(examples))


class Streamed(Split):
    """A split that tells which streams were opened and closed, and what they were asked for."""

    def __init__(self, examples=50):
        self.split, self.opened, self.closed, self.selections = numbers(examples), 0, 0, []

    def __len__(self):
        return len(self.split)

    def batch(self, indices):
        return self.split.batch(indices)

    def to(self, device):
        return self

    def load(self, selections, *, seed):
        self.opened += 1
        try:
            for selection in selections:
                self.selections.append((selection, seed))
                yield self.batch(selection.indices)
        finally:
            self.closed += 1


def assert_same_batch(a, b):
    assert len(a) == len(b) == 2
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# in turn, from the middle, again and again, backwards, and jumping about
@pytest.mark.parametrize("steps", [range(8), range(5, 9), [3, 3, 3], range(6, -1, -1), [0, 1, 7, 8, 2, 3, 100, 0]])
@pytest.mark.parametrize(("batch_size", "repeats"), [(20, 1), (7, 1), (50, 1), (20, 3)])
@pytest.mark.parametrize("make", [numbers, Streamed])
def test_a_feed_gives_the_batch_of_any_step_whatever_was_asked_before(make, batch_size, repeats, steps):
    split = make()
    feed = Feed(split, DataOrder(50, batch_size, seed=3, repeats=repeats), seed=3, share=range(batch_size))
    for step in steps:
        expected = split.batch(DataOrder(50, batch_size, seed=3, repeats=repeats).batch(step))
        assert_same_batch(feed.batch(step), expected)


def test_a_feed_reads_on_in_one_stream_and_opens_another_only_for_a_jump():
    split = Streamed()
    feed = Feed(split, DataOrder(50, 20, seed=3), seed=7, share=range(20))
    for step, streams in ((4, 1), (5, 1), (6, 1), (6, 2), (7, 2), (2, 3), (3, 3)):
        feed.batch(step)
        assert (split.opened, split.closed) == (streams, streams - 1)
    steps = [4, 5, 6, 6, 7, 2, 3]
    for step, (selection, seed) in zip(steps, split.selections, strict=True):
        assert selection.positions.tolist() == list(range(20 * step, 20 * step + 20))
        assert seed == 7


def test_closing_stops_the_stream_and_the_feed_can_go_on_afterwards():
    split = Streamed()
    feed = Feed(split, DataOrder(50, 20, seed=3), seed=3, share=range(20))
    feed.close()  # nothing to close yet
    assert split.opened == 0
    feed.batch(0)
    feed.close()
    feed.close()
    assert (split.opened, split.closed) == (1, 1)
    assert_same_batch(feed.batch(1), split.batch(DataOrder(50, 20, seed=3).batch(1)))
    assert split.opened == 2


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 20])
def test_the_shares_of_all_ranks_are_the_batch(ranks):
    split = Streamed()
    order = DataOrder(50, 20, seed=3)
    feeds = [Feed(split, DataOrder(50, 20, seed=3), seed=3, share=share(20, rank, ranks)) for rank in range(ranks)]
    for step in (0, 1, 2, 9):
        split.selections.clear()
        parts = [feed.batch(step) for feed in feeds]
        joined = tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
        assert_same_batch(joined, split.batch(order.batch(step)))
        # an example is augmented as it would be in the whole batch
        positions = torch.cat([selection.positions for selection, _ in split.selections])
        assert positions.tolist() == list(range(20 * step, 20 * step + 20))
        assert max(len(part[1]) for part in parts) - min(len(part[1]) for part in parts) <= 1


@pytest.mark.parametrize(("examples", "batch_size"), [(12, 4), (10, 4), (7, 7), (5, 1), (9, 8)])
def test_every_epoch_sees_every_example_once(examples, batch_size):
    order = DataOrder(examples, batch_size, seed=0)
    steps = 3 * examples  # whole epochs, whatever the batch
    seen = torch.cat([order.batch(step) for step in range(steps)]).view(-1, examples)
    assert torch.equal(seen.sort(dim=1).values, torch.arange(examples).expand(len(seen), -1))
    assert order.batch(0).shape == (batch_size,)
    if examples > 5:
        assert len(seen.unique(dim=0)) > 1  # in a fresh order


def test_the_order_is_a_function_of_seed_and_step_alone():
    steps = [31, 0, 7, 8, 7, 30]
    walked = DataOrder(100, 30, seed=3)
    there = {step: walked.batch(step) for step in range(40)}
    jumped = DataOrder(100, 30, seed=3)
    torch.manual_seed(5)
    assert all(torch.equal(jumped.batch(step), there[step]) for step in steps)
    assert not torch.equal(DataOrder(100, 30, seed=4).batch(0), there[0])
    state = torch.get_rng_state()
    walked.batch(3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_a_batch_that_no_epoch_holds_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size} is not possible with 10 .*give 1 to 10"):
        DataOrder(10, batch_size, seed=0)


@pytest.mark.parametrize(("examples", "repeats"), [(60, 3), (50, 3), (60, 1), (7, 2), (5, 9)])
def test_repeats_show_each_example_so_many_times_in_a_row_and_a_part_of_them_an_epoch(examples, repeats):
    order = DataOrder(examples, batch_size=1, seed=0, repeats=repeats)
    epochs = [[int(order.batch(epoch * examples + i)) for i in range(examples)] for epoch in range(3)]
    for epoch in epochs:
        runs = [(example, len(list(group))) for example, group in itertools.groupby(epoch)]
        assert len({example for example, _ in runs}) == len(runs) == -(-examples // repeats)
        assert all(length == repeats for _, length in runs[:-1])
        assert runs[-1][1] == examples - repeats * (len(runs) - 1)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("batch_size", [1, 7, 20, 50])
@pytest.mark.parametrize("repeats", [1, 3])
def test_batches_cut_the_same_sequence_whatever_their_size_and_order(batch_size, repeats):
    singles = DataOrder(50, 1, seed=4, repeats=repeats)
    sequence = [int(singles.batch(i)) for i in range(200)]
    order = DataOrder(50, batch_size, seed=4, repeats=repeats)
    for step in reversed(range(200 // batch_size)):
        assert order.batch(step).tolist() == sequence[step * batch_size : (step + 1) * batch_size]


def test_a_subset_is_evenly_spread_over_its_split_and_keeps_the_places_that_seed_augmentation():
    whole = TensorSplit(torch.arange(10.0).view(10, 1), torch.arange(10))
    part = Subset(whole, 5)
    assert (len(part), part.batch(torch.arange(5))[1].tolist()) == (5, [0, 2, 4, 6, 8])
    one = Selection(torch.tensor([4, 1]), torch.tensor([7, 8]))
    assert [targets.tolist() for _, targets in part.load([one], seed=0)] == [[8, 2]]
    with pytest.raises(ValueError, match="training_examples=11 is not possible: give 1 to 10"):
        Subset(whole, 11)
