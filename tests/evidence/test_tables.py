"""Tables from made-up records: what stands in them, its status, and the words of the verdicts."""

import csv
import io
import math
import re
import statistics
from dataclasses import replace

import pytest
from helpers.made_up import change, edit, experiment, gathered, remove, sign, write

from fogzo.evidence.chosen import Choice, write_chosen
from fogzo.evidence.compare import one_more_run
from fogzo.evidence.equal_loss import Ratio, Reached, cost_pairs, ratio_of
from fogzo.evidence.experiment import CostRatio, EqualLoss
from fogzo.evidence.figures.sensitivity import sensitivity, sensitivity_figures
from fogzo.evidence.figures.style import save
from fogzo.evidence.pages import footer, page
from fogzo.evidence.parse import parse
from fogzo.evidence.published import published_text, status
from fogzo.evidence.render import markdown, to_csv
from fogzo.evidence.tables.comparison import comparison_table, control_table, notes, tuned_table
from fogzo.evidence.tables.compute import ratio_table, reached_table
from fogzo.evidence.verdicts import verdicts
from fogzo.runs.schema import METRICS

EFFECT = {"ste": 0, "fogzo": 2, "slope": 1, "noisy_ste": -3, "ste_longer": 2}


def effect(cell):
    setting, method = cell.split(".")
    return EFFECT[method] * (1 if setting == "deit" else -1)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_row_shows_paper_ours_difference_cost_and_status(project):
    made = experiment(also=["train_loss"])
    write(project, made, effect=effect)
    found = gathered(made)
    table = comparison_table(found)
    ste, fogzo = table.texts()[0], table.texts()[1]
    assert ste[:3] == ["deit | a net, 2 bit", "STE", "62.0"]
    assert re.fullmatch(r"\d\d\.\d\d ± \d\.\d\d \(3\)", fogzo[3])
    better = r"\d\.\d\d points better \[\d\.\d\d to \d\.\d\d better\]"
    assert re.fullmatch(rf"{better}; p = 0\.250 \(least of 3 pairs\)", fogzo[5])
    assert ste[5:] == ["–", "3,000", "3.00e+12", "scaled-down twin"]
    assert fogzo[6:] == ["5,000 (1.67×)", "5.00e+12", "scaled-down twin: same direction"]
    assert table.texts()[6][-1] == "scaled-down twin: opposite direction"
    assert table.texts()[2][2] == table.texts()[2][-1] == "–"  # a control: the paper has no such column
    assert table.blocks == [0, 5]
    assert table.notes == []


def test_what_tuning_chose_is_shown_with_its_edges_and_where_its_search_started(project):
    made = experiment()
    made["settings"]["deit"] |= {"start_from": "ste", "start_also": {"optimizer.lr": [0.01, 0.1]}}
    write(project, made, effect=effect)
    tried = [{"values": {"optimizer.lr": rate}, "train_loss": rate} for rate in (0.1, 0.2)]
    chosen = {
        "deit.ste": Choice({"optimizer.lr": 0.1}, ["optimizer.lr"], 2, tried),
        "deit.fogzo": Choice({"optimizer.lr": 0.1}, [], 2, tried, start={"optimizer.lr": 0.2}),
    }
    found = tuned_table(replace(gathered(made), tuned=chosen))
    assert [row[2:] for row in found.texts()] == [
        ["optimizer.lr = 0.1 (edge)", "2", "0.1: 0.1, 0.2: 0.2"],
        ["optimizer.lr = 0.1", "2, from optimizer.lr = 0.2 and optimizer.lr = 0.1", "0.1: 0.1, 0.2: 0.2"],
    ]


def test_the_page_says_where_tuning_left_its_grid_open(project):
    made = experiment(settings=("deit",))
    made["tuning"]["search"] = {"optimizer.lr": [0.1, 0.2, 0.4]}
    write(project, made, effect=effect)
    tried = [{"values": {"optimizer.lr": rate, "estimator.beta_min": 0.9}, "train_loss": rate} for rate in (0.1, 0.4)]
    chosen = {
        "deit.ste": Choice({"optimizer.lr": 0.4}, ["optimizer.lr"]),
        "deit.fogzo": Choice(tried[1]["values"], [], 2, tried, start={"optimizer.lr": 0.1}),
        "deit.slope": Choice(tried[0]["values"] | {"optimizer.lr": 0.1}, [], 2, tried, start={"optimizer.lr": 0.1}),
    }
    found = notes(replace(gathered(made), tuned=chosen))
    where = "deit | a net, 2 bit"
    assert found[-3:] == [
        f"On the edge of its grid ({where}, STE): optimizer.lr.",
        f"Not tried, beside the best ({where}, FOGZO, n = 1): optimizer.lr = 0.2.",
        f"Not tried, beside the best ({where}, control: β = 1 (measured slope, no noise)): optimizer.lr = 0.2.",
    ]


def test_what_a_cell_takes_from_another_is_shown_as_that_and_not_as_what_was_tuned_for_it_once(project):
    made = experiment(settings=("deit",))
    made["methods"]["fogzo"] = {"search": {"optimizer.lr": None}, "tuned_as": "ste"}
    write(project, made, effect=effect)
    tried = [{"values": {"optimizer.lr": rate}, "train_loss": rate} for rate in (0.1, 0.2)]
    write_chosen(parse(made), parse(made).cells["deit.ste"], Choice({"optimizer.lr": 0.1}, [], 2, tried))
    stale = Choice({"optimizer.lr": 0.2}, ["optimizer.lr"], 2, tried)
    write_chosen(parse(made), parse(made).cells["deit.fogzo"], stale)
    found = gathered(made)
    assert "deit.fogzo" not in found.tuned
    assert [row[1:] for row in tuned_table(found).texts()][:2] == [
        ["STE", "optimizer.lr = 0.1", "2", "0.1: 0.1, 0.2: 0.2"],
        ["FOGZO, n = 1", "as STE: optimizer.lr = 0.1", "–", "–"],
    ]


def test_the_csv_has_every_number_in_full(project):
    made = experiment(also=["train_loss"])
    write(project, made, effect=effect)
    found = gathered(made)
    rows = {row["cell"]: row for row in csv.DictReader(io.StringIO(to_csv(comparison_table(found))))}
    assert set(rows) == set(found.cells)
    row, cell = rows["deit.fogzo"], found.cells["deit.fogzo"]
    difference = found.difference(cell, found.baseline(cell))
    assert float(row["difference"]) == pytest.approx(difference.mean, rel=1e-5)
    assert float(row["mean"]) == pytest.approx(sum(found.values(cell).values()) / 3, rel=1e-5)
    losses = list(found.values(cell, "train_loss").values())
    assert float(row["train_loss_mean"]) == pytest.approx(statistics.fmean(losses), rel=1e-5)
    assert float(row["train_loss_std"]) == pytest.approx(statistics.stdev(losses), rel=1e-5)
    assert row["train_loss_n"] == "3"
    ends = [float(row[name]) for name in ("low", "high", "t_low", "t_high")]
    assert ends == pytest.approx([difference.low, difference.high, *difference.interval], rel=1e-5)
    assert (row["seeds"], row["n"], row["p_least"], row["outcome"]) == ("11 12 13", "3", "0.25", "better")


def test_a_cell_without_runs_is_a_dash_with_the_command_that_fills_it(project):
    made = experiment()
    records = write(project, made)
    for seed in made["seeds"]:
        remove(records["resnet.fogzo", seed])
    found = gathered(made)
    row = comparison_table(found).texts()[6]
    assert row[3:] == ["–", "–", "–", "–", "not run"]
    command = "`python train.py -m experiment=twin cell=resnet.fogzo seed=11,12,13`"
    assert command in markdown(comparison_table(found))


def test_diverged_and_refused_runs_are_named_below(project):
    made = experiment()
    records = write(project, made)
    for seed in made["seeds"]:
        edit(records["deit.fogzo", seed], status="diverged")
        sign(records["deit.fogzo", seed])
    edit(records["deit.ste", 11], accuracy=99)
    found = gathered(made)
    notes = "\n".join(comparison_table(found).notes)
    assert "Diverged (deit | a net, 2 bit, FOGZO, n = 1): seed 11, 12, 13" in notes
    assert "Not used: results/records/twin.jsonl, line 1: it was changed" in notes
    assert status(found, found.cells["deit.fogzo"]).text == "diverged"


@pytest.mark.parametrize(("published", "word"), [(69.0, "reproduced"), (80.0, "deviates")])
def test_only_runs_at_paper_scale_reproduce_or_deviate(published, word, project):
    made = experiment(scale="paper")
    write(project, made)
    found = gathered(made)
    found.paper["rows"]["deit_row"]["fogzo"] = published
    assert status(found, found.cells["deit.fogzo"]).text == word
    one = gathered(made | {"seeds": [11]})
    assert status(one, one.cells["deit.fogzo"]).text == "fewer than 3 runs: not judged"
    twin = experiment("other")
    write(project, twin)
    assert status(gathered(twin), gathered(twin).cells["deit.fogzo"]).text.startswith("scaled-down twin: ")


def test_runs_that_could_be_either_published_number_reproduce_none(project):
    made = experiment(scale="paper")
    write(project, made)
    found = gathered(made)
    cell = found.cells["deit.fogzo"]
    low, high = one_more_run(list(found.values(cell).values()))
    row = found.paper["rows"]["deit_row"]
    row["fogzo"], row["ste"] = (low + high) / 2, high - 0.01 * (high - low)
    assert status(found, cell).text == "not to be told apart"
    row["ste"] = high + 0.01 * (high - low)
    assert status(found, cell).text == "reproduced"
    two = gathered(made | {"seeds": [11, 12]})
    two.paper["rows"]["deit_row"] |= row
    assert status(two, two.cells["deit.fogzo"]).text == "fewer than 3 runs: not judged"


def test_what_the_paper_says_of_equal_steps_is_held_against_equal_steps_alone(project):
    made = experiment()
    for (cell, _), record in write(project, made, effect=effect).items():
        if cell == "deit.fogzo":
            edit(record, steps=7)
            sign(record)
    found = gathered(made)
    assert status(found, found.cells["deit.fogzo"]).text == "scaled-down twin: not at the paper's steps, not judged"
    found.paper["rows"]["deit_row"]["baseline_steps"] = found.finished(found.cells["deit.ste"])[0].summary["steps"] / 7
    assert "not judged" not in status(found, found.cells["deit.fogzo"]).text  # it is the paper's comparison then


def test_values_that_are_words_or_unknown_are_shown_as_they_are(project):
    made = experiment()
    write(project, made, effect=effect)
    found = gathered(made)
    cell = found.cells["deit.fogzo"]
    for value, text, state in (
        ({"loss": "better than STE", "direction": "better"}, "loss better than STE", "same direction"),
        ({"loss": "much worse", "direction": "worse"}, "loss much worse", "opposite direction"),
        ("better than STE", "better than STE", "better than the baseline; the paper's direction is not known"),
        (None, "unknown", "better than the baseline; the paper's direction is not known"),
        ({"accuracy": 70.0, "train_loss": 2.5}, "accuracy 70.0, train loss 2.5", "same direction"),
    ):
        found.paper["rows"]["deit_row"]["fogzo"] = value
        assert published_text(found, cell) == text
        assert status(found, cell).text == f"scaled-down twin: {state}"


def test_verdicts_count_settings_and_say_how_large(project):
    made = experiment()
    write(project, made, effect=effect)
    found = {(v.method.method.name, v.against.method.name): v for v in verdicts(gathered(made))}
    of_fogzo = [("fogzo", against) for against in ("ste", "slope", "noisy_ste", "ste_longer")]
    assert list(found) == [*of_fogzo, ("slope", "ste_longer")]
    assert found["fogzo", "ste"].word == "mixed"
    assert found["fogzo", "ste"].counts == "better in 1, worse in 1 of 2 settings"
    assert re.search(r"; \d\.\d\d points worse to \d\.\d\d points better\.$", found["fogzo", "ste"].sentence())
    for factor, word in ((1, "confirmed"), (-1, "opposite"), (0, "not to be told apart")):
        other = experiment(f"other{factor}")
        write(project, other, effect=lambda cell, factor=factor: 3 * factor * (cell.endswith(".fogzo")))
        assert verdicts(gathered(other))[0].word == word
    assert "confirmed" not in found["fogzo", "noisy_ste"].word  # the paper says nothing about controls


def test_fogzo_stands_against_every_control(project):
    made = experiment()
    write(project, made, effect=effect)
    rows = control_table(gathered(made)).texts()
    assert len(rows) == 8
    assert [row[2] for row in rows[:2]] == ["control: β = 1 (measured slope, no noise)"] * 2
    assert rows[2][-1] == "better"


def test_the_comparisons_with_controls_are_in_a_csv_in_full(project):
    made = experiment()
    write(project, made, effect=effect)
    found = gathered(made)
    shown, rows = control_table(found).texts(), list(csv.DictReader(io.StringIO(to_csv(control_table(found)))))
    assert [row["outcome"] for row in rows] == [row[-1] for row in shown]
    assert (rows[2]["setting"], rows[2]["method"], rows[2]["against"]) == ("deit", "fogzo", "noisy_ste")
    difference = found.difference(found.cells["deit.fogzo"], found.cells["deit.noisy_ste"])
    assert float(rows[2]["t_high"]) == pytest.approx(difference.t_high, rel=1e-5)


def test_every_ratio_and_cost_at_equal_loss_follows_from_the_csv(project):
    made = experiment(metric="train_loss")
    made["equal_loss"] = {"targets": ["deit.slope"], "ratios": [{"of": "deit.slope", "to": "deit.fogzo"}]}
    write(project, made, effect=lambda cell: {"deit.fogzo": 10, "deit.slope": -20}.get(cell, 0))
    found = gathered(made)
    rows = list(csv.DictReader(io.StringIO(to_csv(reached_table(found)))))
    cost = {(r["loss_of"], r["loss_of_seed"], r["cell"], r["seed"]): r["forward_equivalents"] for r in rows}
    assert len(cost) == len(rows) == 3 * 10 + 3 * 2
    pairs = [[float(cost["deit.slope", s, f"deit.{m}", s]) for m in ("slope", "fogzo")] for s in ("11", "12", "13")]
    two = (found.cells["deit.slope"], found.cells["deit.fogzo"])
    assert pairs == [[own.at, other.at] for own, other in cost_pairs(found, *two)]
    mean = statistics.fmean(found.values(found.cells["deit.slope"]).values())
    assert {r["train_loss"] for r in rows if r["loss_of_seed"] == "mean"} == {f"{mean:.6g}"}


def test_ratios_pair_seeds_and_not_reached_is_a_value(project):
    made = experiment(metric="train_loss")
    write(project, made, effect=lambda cell: {"deit.fogzo": 10, "deit.slope": -20}.get(cell, 0))
    found = gathered(made)
    cells = found.cells
    pairs = cost_pairs(found, cells["deit.slope"], cells["deit.fogzo"])
    assert len(pairs) == 3
    assert all(own.before < own.at >= other.at for own, other in pairs)
    asked = [CostRatio("deit.slope", "deit.fogzo", "796"), CostRatio("deit.fogzo", "deit.slope")]
    found = replace(found, experiment=replace(found.experiment, equal_loss=EqualLoss((), tuple(asked))))
    better, never = ratio_table(found).texts()
    quotients = sorted(own.at / other.at for own, other in pairs)
    assert float(better[3]) == pytest.approx(quotients[1], rel=0.01)
    assert better[5] == "3 of 3"
    assert (never[3], never[5]) == ("not reached", "0 of 3")
    assert never[4].startswith("less than ")
    made["equal_loss"] = {"targets": ["deit.fogzo"], "ratios": []}
    rows = list(csv.DictReader(io.StringIO(to_csv(reached_table(gathered(made))))))
    assert {row["forward_equivalents"] for row in rows if row["cell"] == "deit.slope"} == {""}  # as the header says


def test_a_ratio_that_no_later_evaluation_bounds_has_no_upper_end():
    early = [(Reached(70, 80), Reached(0, 10))]
    assert (ratio_of(early).low, ratio_of(early).high) == (7, math.inf)


def test_a_seed_that_never_gets_there_makes_the_ratio_smaller():
    never, twice = (Reached(70, 80), Reached(100, math.inf)), [(Reached(70, 80), Reached(5, 10))] * 2
    some = ratio_of([*twice, never])
    assert some == Ratio(8, 7, 16, seeds=2, pairs=3)
    assert some.range_text == "7 to 16, not reached by 1 of 3"
    assert ratio_of([never]) == Ratio(0, 0, pytest.approx(0.8), seeds=0, pairs=1)
    assert ratio_of([]) is None


def test_verdicts_compare_with_the_controls_that_match(project):
    made = experiment()
    made["methods"]["fogzo_4"] = None
    made["methods"]["fogzo_dropin"] = {"search": made["tuning"]["search"], "tuned_as": None}
    write(project, made)
    found = [(v.method.method.name, v.against.method.name) for v in verdicts(gathered(made))]
    assert ("fogzo_4", "slope") in found
    assert not {("fogzo_4", control) for control in ("noisy_ste", "ste_longer")} & set(found)
    assert [against for method, against in found if method == "fogzo_dropin"] == ["ste", "ste_longer"]


def test_settings_of_which_the_paper_says_nothing_confirm_nothing(project):
    made = experiment()
    write(project, made, effect=lambda cell: 3 * (cell == "deit.fogzo") - 3 * (cell == "resnet.fogzo"))
    found = gathered(made)
    assert verdicts(found)[0].word == "mixed"
    found.paper["rows"]["deit_row"]["fogzo"] = None
    first = verdicts(found)[0]
    assert first.word == "opposite"
    assert "of 1 the paper's direction is not known" in first.sentence()


def test_a_column_that_no_run_has_is_named_and_no_empty_panel_is_drawn(project):
    axis = {"label": "β_min", "methods": {"fogzo": 1, "slope": 2}}
    made = experiment(also=["train_loss", "mean_crossings"], axes=[axis, axis | {"metric": "mean_crossings"}])
    write(project, made)
    found = gathered(made)
    label = METRICS["mean_crossings"].label
    assert f"No run has the column {label}: it came after them" in " ".join(comparison_table(found).notes)
    save(sensitivity(found, sensitivity_figures(found)[0]), project / "drawn.svg")
    assert label not in (project / "drawn.svg").read_text(encoding="utf-8")


def test_runs_of_several_kinds_of_processor_in_one_setting_are_named(project):
    made = experiment()
    records = write(project, made)
    every, two = [11, 12, 13], {"name": "EPYC", "instructions": "AVX2"}
    for cell, seed in [("deit.ste", seed) for seed in every] + [("resnet.ste", 11)]:
        edit(records[cell, seed], processor=two)
        sign(records[cell, seed])
    found = gathered(made)
    notes = [note for note in comparison_table(found).notes if note.startswith("Of several machines")]
    unknown = "cpu (of a kind that the record does not say)"
    deit, resnet = (note.partition("differ: ")[2] for note in notes)
    assert deit.startswith(f"cpu (EPYC, AVX2): STE; {unknown}: FOGZO, n = 1, ")
    assert resnet.startswith(f"cpu (EPYC, AVX2): STE; {unknown}: STE, FOGZO, n = 1, ")
    assert f", cpu (EPYC, AVX2), {unknown}. Spread" in footer(found)


def test_codes_that_flip_are_shown_as_the_mean_of_the_rows_which_alone_count_them(project):
    made = experiment(also=["flip_share"])
    records = write(project, made)
    for seed in made["seeds"]:
        for row in range(1, 20):  # not in the last one
            change(records["deit.ste", seed], row, flip_share=row / 100)
    found = gathered(made)
    table = comparison_table(found)
    column = table.header.index("codes that flipped, share")
    assert table.texts()[0][column] == "0.1000 ± 0.0000"
    assert table.texts()[1][column] == "–"
    assert "Codes that flipped: those that differ from the row before" in " ".join(table.notes)


def test_the_page_names_runs_seeds_commit_and_versions(project):
    made = experiment()
    write(project, made)
    found = gathered(made)
    text = page(found)
    assert footer(found) in text
    assert "30 runs in results/records/twin.jsonl, scale mini, data made up, seeds 11, 12, 13, commit 0123456" in text
    assert "torch 2.14.1" in text
    assert "The paper: Nets on images. FOGZO is better than STE at the same number of steps." in text
    assert str(project) not in text
