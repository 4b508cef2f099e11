"""Members against an STE of the same compute, as table and figure; and what every panel of a figure has."""

import matplotlib.pyplot as plt
import pytest
from helpers import made_up

from fogzo.evidence.figures.curves import curve_figures, curves
from fogzo.evidence.figures.family import members
from fogzo.evidence.figures.forest import differences
from fogzo.evidence.figures.rates import OTHERS, rate_figures, rates
from fogzo.evidence.figures.style import plain_ticks, save
from fogzo.evidence.tables.overview import decisions_table, equal_baseline, members_table
from fogzo.runs.files import read_yaml

GAINS = {"fogzo": 5.0, "slope": -5.0, "noisy_ste": 0.0, "ste_longer": 2.0}
RENAMED = {
    "ste": made_up.METHODS["ste"],
    "fogzo_1": made_up.METHODS["fogzo"],
    "ste_longer": made_up.METHODS["ste_longer"],
}


@pytest.fixture
def found(tmp_path, monkeypatch):
    """An experiment of two settings, one that calls FOGZO by another name, and one without an STE of FOGZO's cost."""
    monkeypatch.chdir(tmp_path)
    without = {name: made_up.METHODS[name] for name in ("ste", "fogzo")}
    every = [
        made_up.experiment("twin", seeds=range(11, 17)),
        made_up.experiment("other", ("llama",), RENAMED, "perplexity", range(11, 17)),
        made_up.experiment("without", ("mlp",), without),
    ]
    for made in every:
        made_up.write(tmp_path, made, effect=lambda cell: GAINS.get(cell.partition(".")[2].removesuffix("_1"), 0.0))
    return [made_up.gathered(made) for made in every]


def test_each_member_is_compared_with_the_ste_that_cost_the_same(found):
    twin, _other, without = found
    against = {m: equal_baseline(twin, twin.cells[f"deit.{m}"]) for m in GAINS}
    assert {m: cell and cell.method.name for m, cell in against.items()} == {
        "fogzo": "ste_longer", "slope": "ste_longer", "noisy_ste": "ste", "ste_longer": None,
    }  # fmt: skip
    assert equal_baseline(twin, twin.cells["deit.ste"]) is None
    assert equal_baseline(without, without.cells["mlp.fogzo"]) is None


@pytest.mark.parametrize(("cheaper", "against"), [({}, "ste_longer"), ({"flops": 4e12}, None)])
def test_the_same_flops_are_the_same_compute_where_a_backward_pass_costs_less_than_two_forward_ones(
    cheaper, against, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    made = made_up.experiment("twin")
    for (name, _), record in made_up.write(tmp_path, made).items():
        if name == "deit.ste_longer":
            made_up.change(record, 20, forward_equivalents=6000, **cheaper)
    twin = made_up.gathered(made)
    found = equal_baseline(twin, twin.cells["deit.fogzo"])
    assert (found and found.method.name) == against


def test_the_table_has_a_row_a_setting_and_one_column_for_a_method_of_several_names(found):
    table = members_table(found)
    assert table.header == [
        "experiment", "setting", "FOGZO, n = 1", "β = 1 (measured slope, no noise)", "STE + noise of FOGZO's size",
    ]  # fmt: skip
    assert [row[:2] for row in table.texts()] == [
        [found[0].title, "deit | a net, 2 bit"],
        ["", "resnet | a net, 2 bit"],
        [found[1].title, "llama | a net, 2 bit"],
    ]
    fogzo, slope, noise = table.texts()[0][2:]
    difference = found[0].difference(found[0].cells["deit.fogzo"], found[0].cells["deit.ste_longer"])
    assert fogzo == f"{difference.mean:.2f} points better"
    assert slope.endswith("points worse")
    assert noise.endswith(", open")
    assert table.texts()[2][2].endswith("ppl better")
    assert table.texts()[2][3:] == ["–", "–"]
    assert table.blocks == [0, 2]


def test_decisions_are_corrected_within_a_setting(found):
    asked = {"FOGZO": ("fogzo", "ste"), "noise": ("noisy_ste", "ste"), "none": ("nspsa_1", "ste")}
    table = decisions_table(found[:1], asked)
    (_title, label, seeds, fogzo, noise, none), _ = table.texts()
    assert (label, seeds, none) == (found[0].cells["deit.ste"].setting.label, "6", "–")
    # the least p of six pairs is 2/64: alone it decides, as the lesser of two it does not, not even where all agree
    assert fogzo.startswith("open: ")
    assert fogzo.endswith("points better (0.062)")
    assert noise.startswith("open: ")
    (_title, _label, _seeds, alone), _ = decisions_table(found[:1], {"FOGZO": asked["FOGZO"]}).texts()
    assert alone == fogzo.removeprefix("open: ").replace("0.062", "0.031")
    beside, _ = decisions_table(found[:1], {"FOGZO": asked["FOGZO"]}, also=asked).texts()
    assert beside == [_title, _label, _seeds, fogzo]  # the noise, which another table shows, counts
    assert decisions_table(found[:1], {"none": asked["none"]}).texts() == []
    (_title, _label, _seeds, held_out), _ = decisions_table(
        found[:1], {"FOGZO": asked["FOGZO"]}, by="test_loss"
    ).texts()
    assert "nats" in held_out


def test_what_diverged_on_every_seed_is_decided_and_counts_in_the_correction(found, tmp_path):
    asked = {"FOGZO": ("fogzo", "ste"), "noise": ("noisy_ste", "ste")}
    made = made_up.experiment("apart", ("deit",), seeds=range(11, 17))
    records = made_up.write(tmp_path, made, effect=lambda cell: GAINS.get(cell.partition(".")[2], 0.0))
    for seed in made["seeds"]:
        made_up.edit(records["deit.noisy_ste", seed], status="diverged", accuracy=made_up.GONE)
        made_up.sign(records["deit.noisy_ste", seed])
    ((_title, _label, _seeds, fogzo, noise),) = decisions_table([made_up.gathered(made)], asked).texts()
    assert noise == "worse (0)"
    assert fogzo.endswith("points better (0.031)")  # of two comparisons one is certain


def test_a_figure_of_equal_runs_and_another_has_an_axis(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    methods = {name: made_up.METHODS[name] for name in ("ste", "slope", "fogzo", "noisy_ste")}
    made = made_up.experiment("equal", ("deit",), methods)
    for (cell, seed), record in made_up.write(tmp_path, made).items():
        made_up.edit(record, accuracy=50.0 + seed * (cell == "deit.noisy_ste"))
        made_up.sign(record)
    low, high = differences(made_up.gathered(made)).axes[0].get_xlim()
    assert low < 0 < high


def test_columns_along_training_have_a_panel_each_in_every_setting_that_logged_them(found):
    along = ["loss", "agreement", "test_loss"]  # no row has an agreement
    ((*panels,),) = curve_figures(found[0], along)
    assert [(cells[0].setting.name, key) for cells, key in panels] == [
        (setting, key) for setting in ("deit", "resnet") for key in ("loss", "test_loss")
    ]
    labels = [axis.get_ylabel() for axis in curves(found[0], panels).axes]
    assert labels == ["loss of the batches", "test loss"] * 2


def test_a_line_takes_the_best_of_a_methods_knob_at_each_rate_that_was_tried(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = made_up.experiment("tuned", ("deit",), {name: made_up.METHODS[name] for name in ("ste", "fogzo")})
    made_up.write(tmp_path, made)
    losses = {"deit.ste": [0.5, 0.7], "deit.fogzo": [0.8, 0.6, 9.0, 0.4]}  # rate by rate, both knobs of FOGZO's
    file = tmp_path / made["tuning"]["chosen"]
    entries = read_yaml(file)
    for cell, values in losses.items():
        for trial, value in zip(entries[cell]["tried"], values, strict=True):
            trial["train_loss"] = value
    made_up.dump(file, entries)
    found = made_up.gathered(made)
    ((panel,),) = rate_figures(found)
    figure = rates(found, [panel])
    (axis,) = figure.axes
    ste, fogzo, *others = [list(zip(*drawn.get_data(), strict=True)) for drawn in axis.lines]
    assert ste == [(0.01, 0.5), (0.1, 0.7)]
    assert fogzo == [(0.01, 0.6), (0.1, 0.4)]
    assert others == [[(0.01, 0.8)], [(0.1, 1)]]  # the second further up than the axis reaches, so at its end
    assert axis.get_ylim()[0] < 0.4 < 0.8 < axis.get_ylim()[1] < 9
    assert (axis.get_xscale(), axis.get_ylabel()) == ("log", "training loss in tuning, nats")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*(c.label for c in panel), *OTHERS.values()]


def test_the_figure_is_drawn_of_what_was_run(found, tmp_path):
    save(members(found), tmp_path / "members.svg", tmp_path / "members.png")
    drawn = (tmp_path / "members.svg").read_text(encoding="utf-8")
    assert all(row[1] in drawn and f"+{row[2].partition(' ')[0]}" in drawn for row in members_table(found).texts())
    assert (tmp_path / "members.png").stat().st_size > 1000


@pytest.mark.parametrize("ends", [(0.81, 1.38), (0.52, 0.68), (2.91, 2.93), (0.1, 5), (0.003, 700), (1.1, 1.9)])
def test_a_short_logarithmic_axis_has_labelled_ticks_too(ends):
    figure, panel = plt.subplots()
    panel.set_yscale("log")
    panel.set_ylim(*ends)
    plain_ticks(panel.yaxis)
    figure.draw_without_rendering()
    shown = [tick.label1.get_text() for tick in panel.yaxis.get_major_ticks() if ends[0] <= tick.get_loc() <= ends[1]]
    plt.close(figure)
    assert 2 <= len(set(shown)) == len(shown)
    assert all(float(text) > 0 for text in shown)
