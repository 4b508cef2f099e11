"""The search of one cell's values: fair and reproducible."""

import json
import math

import pytest

from fogzo.evidence.experiment import Cell, Method, Setting
from fogzo.evidence.search import CellSearch

LR = [0.001, 0.01, 0.1, 1.0]
BETA = [0.9, 0.99, 0.999, 0.9999]


def cell_of(name, search):
    return Cell(name, Setting("", "", ("ste",), "train_loss"), Method("ste", "STE"), search=search)


SMALL = cell_of("small", {"optimizer.lr": LR})
LARGE = cell_of("large", {"optimizer.lr": LR, "estimator.beta_min": BETA})


def search_of(cell, **changes):
    return CellSearch(cell, **{"trials": 8, "metric": "train_loss", "depends_on": ["seed=0"]} | changes)


def loss_at(point):
    """Least at a learning rate of 0.1 and β_min = 0.999."""
    return abs(math.log10(point["optimizer.lr"]) + 1) + abs(math.log10(1 - point.get("estimator.beta_min", 0.999)) + 3)


def carry_on(search, at_most=100, metric="train_loss", sign=1):
    tried = []
    while len(tried) < at_most and (point := search.next_point()):
        search.tell(point, {metric: sign * loss_at(point)})
        tried.append(point)
    return tried


def test_a_small_space_is_tried_completely_in_order():
    search = search_of(SMALL)
    assert carry_on(search) == [{"optimizer.lr": lr} for lr in LR]
    outcome = search.outcome()
    assert (outcome.values, outcome.on_edge_of_grid, outcome.trials) == ({"optimizer.lr": 0.1}, [], 4)
    assert outcome.tried[2] == {"values": {"optimizer.lr": 0.1}, "train_loss": pytest.approx(0)}


def test_a_large_space_gets_its_trials_and_no_point_twice():
    search = search_of(LARGE)
    tried = carry_on(search)
    assert len({json.dumps(point) for point in tried}) == len(tried) == 8
    assert search.outcome().trials == 8
    assert len(carry_on(search_of(LARGE, trials=15))) == 15  # all but one, still none twice


def test_the_search_finds_the_region_of_the_best_point():
    values = [10**-i for i in range(9, 0, -1)]
    cell = cell_of("cell", {"optimizer.lr": values, "estimator.beta_min": [0.9, 0.99, 0.999, 0.9999]})
    losses = [loss_at(point) for point in carry_on(search_of(cell, trials=18))]
    assert min(losses[9:]) <= 1
    assert sum(losses[9:]) < sum(losses[:9])


def test_the_same_points_come_in_the_same_order_of_what_the_outcome_depends_on():
    whole, search = carry_on(search_of(LARGE)), search_of(LARGE)
    assert carry_on(search, at_most=3) + carry_on(search) == whole
    assert search.next_point() is None
    assert carry_on(search_of(LARGE, depends_on=["seed=0", "steps=9"])) != whole


def test_a_diverged_run_is_infinitely_bad_and_an_edge_is_named():
    search = search_of(SMALL)
    outcomes = [{"train_loss": 2.0}, {"train_loss": None, "status": "diverged"}, None, {"train_loss": 1.0}]
    values = [search.tell(search.next_point(), outcome) for outcome in outcomes]
    assert values == [2, math.inf, math.inf, 1]
    outcome = search.outcome()
    assert (outcome.values, outcome.on_edge_of_grid) == ({"optimizer.lr": 1.0}, ["optimizer.lr"])
    hopeless = search_of(SMALL)
    for _ in LR:
        hopeless.tell(hopeless.next_point(), None)
    assert hopeless.outcome() is None


@pytest.mark.parametrize(
    ("key", "values", "edges"),
    [
        ("estimator.beta_min", [0.999, 0.9999, 1.0], []),
        ("estimator.beta_min", [0.999, 0.9999, 0.99999], ["estimator.beta_min"]),
        ("estimator.sigma", [1.0, 0.5, 0.0], []),
        ("estimator.sigma", [0.0, 0.5, 1.0], ["estimator.sigma"]),
    ],
)
def test_the_end_of_a_keys_range_is_no_edge_since_no_grid_goes_on_there(key, values, edges):
    search = search_of(cell_of("closed", {key: values}))
    for loss in (3.0, 2.0, 1.0):  # the last value is the best one
        search.tell(search.next_point(), {"train_loss": loss})
    assert search.outcome().on_edge_of_grid == edges


def test_a_trial_on_several_seeds_counts_by_its_mean_and_not_at_all_where_one_has_diverged():
    search = search_of(SMALL)
    outcomes = [({"train_loss": 2.0}, {"train_loss": 1.0}), ({"train_loss": 0.5}, None)]
    assert [search.tell(search.next_point(), *seeds) for seeds in outcomes] == [1.5, math.inf]


def test_accuracy_is_maximised():
    search = search_of(SMALL, metric="accuracy")
    carry_on(search, metric="accuracy", sign=-1)
    assert search.outcome().values == {"optimizer.lr": 0.1}
    assert search.outcome().tried[0] == {"values": {"optimizer.lr": 0.001}, "accuracy": pytest.approx(-2)}


def test_mistakes_are_refused():
    search = search_of(SMALL)
    with pytest.raises(ValueError, match=r"tuning\.metric=train_loss is not in the summary"):
        search.tell(search.next_point(), {"accuracy": 1.0})
