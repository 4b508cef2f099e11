"""The command: what it writes, what it refuses, and what it leaves as it was."""

import json
import re
import sys

import pytest
import torch
from helpers.checks import assert_refused
from helpers.cli import ROOT, run_script
from helpers.trainers import make
from torch import nn

import fogzo
from fogzo.diagnosis.bias import Interval
from fogzo.diagnosis.health import Course, count_flips, tensor_health
from fogzo.diagnosis.probing import measure
from fogzo.diagnosis.summary import Row, resolution, rows_of
from fogzo.training.ledger import PEAK

SHORT = ["model=mlp", "data=mnist5k", "optimizer=sgd", "batch_size=64", "steps=20", "threads=1", "progress=lines"]
FEW = ["--batches", "2", "--probes", "4"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    found = {}
    for name, words in {
        "ste": ["estimator=ste", "quantizer=fixed", "checkpoint_every=10", "keep_checkpoints=2"],
        "fogzo": ["estimator=fogzo", "quantizer=sign", "quantizer.surrogate=hardtanh"],
        "plain": ["estimator=ste", "quantizer=none"],
    }.items():
        assert run_script("train.py", *SHORT, *words, f"run_dir={root / name}") == 0
        found[name] = root / name
    return found


def diagnosed(capsys, *words):
    capsys.readouterr()
    code = run_script("scripts/diagnose.py", *map(str, words))
    if isinstance(code, str):
        return 1, "", code + "\n"
    out, err = capsys.readouterr()
    return code, out, err


def test_two_runs_side_by_side_give_a_page_of_its_own_a_json_and_a_table(runs, capsys, tmp_path):
    page = tmp_path / "new" / "both.html"
    code, out, _ = diagnosed(capsys, runs["ste"], runs["fogzo"], *FEW, "--page", page)
    assert code == 0
    assert out.count("network") == 2
    text = page.read_text()
    assert text.count("<article>") == 2
    assert "http" not in text
    assert text.count("<svg ") == 6 + 3  # cosines and codes, what the log holds, and of the first what checkpoints hold
    flips = [part for part in text.split("<svg ") if "codes flipped since" in part]
    tops = [re.search(r'y="30">([0-9.e-]+)<', part)[1] for part in flips]
    assert len(tops) == 2  # the same axes, so that the two can be compared
    assert tops[0] == tops[1]
    ste, other = json.loads(page.with_suffix(".json").read_text())
    assert [row["name"] for row in ste["rows"]] == [
        "hidden.weight", "hidden.bias", "head.weight", "head.bias", "network",
    ]  # fmt: skip
    assert [(point["step"], len(point["scales"]), point["revived"]) for point in ste["path"]] == [(10, 4, 0.0)]
    assert (ste["step"], other["step"], other["path"]) == (20, 20, [])
    assert all(-1 <= row["ste"]["low"] <= row["ste"]["high"] <= 1 for row in ste["rows"])
    assert other["beta"] == 0.999
    assert "suggests β of at least 1 - 1.3e-04" in ste["verdict"]


def test_the_commands_of_the_pages_run(runs, capsys, tmp_path):
    names = {
        "RUN_FOLDER": runs["fogzo"],
        "RUN_FOLDER/checkpoint-000000500.pt": runs["ste"] / "checkpoint-000000010.pt",
        "RUN_A": runs["ste"],
        "RUN_B": runs["fogzo"],
    }
    for page in ("README.md", "docs/diagnosis.md"):
        lines = re.findall(r"^python scripts/diagnose.py ([^#\n]*)", (ROOT / page).read_text(), re.MULTILINE)
        assert len(lines) >= 2
        for line in lines:
            words = [names.get(word, word) for word in line.split()]
            code, out, err = diagnosed(capsys, *words, *FEW, "--page", tmp_path / "page.html")
            assert (code, out.count("network ")) == (0, 2 if "RUN_B" in line else 1), err


def test_the_figure_of_the_mechanism_is_drawn_from_its_data():
    figure = ROOT / "results" / "diagnosis" / "mechanism.svg"
    before = figure.read_bytes()
    assert run_script("scripts/mechanism.py", "--draw") == 0
    assert figure.read_bytes() == before


def test_a_checkpoint_is_diagnosed_with_what_the_next_steps_do_to_the_codes(runs, capsys):
    file = runs["ste"] / "checkpoint-000000010.pt"
    before = file.read_bytes()
    code, out, _ = diagnosed(capsys, file, *FEW)
    assert code == 0
    assert re.search(r"[\d.]+% of the codes flip a step, [\d.]+% came back in 20 steps", out)
    assert file.read_bytes() == before
    assert (runs["ste"] / "diagnosis.html").exists()


def test_what_cannot_be_diagnosed_is_refused_in_a_sentence(runs, capsys, tmp_path):
    assert_refused(diagnosed(capsys, tmp_path / "none"), "none is not there", "model.pt")
    record = tmp_path / "record"
    record.mkdir()
    (record / "config.yaml").write_bytes((runs["ste"] / "config.yaml").read_bytes())
    assert_refused(diagnosed(capsys, record), "holds no weights")
    (record / "model.pt").write_bytes((runs["fogzo"] / "model.pt").read_bytes())
    assert_refused(diagnosed(capsys, record), "holds another model")
    (record / "model.pt").write_bytes(b"no weights")
    assert_refused(diagnosed(capsys, record), "model.pt cannot be read")
    assert_refused(diagnosed(capsys, runs["plain"]), "quantizer=none")
    assert_refused(diagnosed(capsys, runs["ste"], "--batches", "1"), "batches=1", "halves")
    assert_refused(diagnosed(capsys, runs["ste"], "--batches", "99"), "batches=99", "at most 62")
    assert_refused(diagnosed(capsys, runs["ste"], "--probes", "0"), "probes=0")
    assert_refused(diagnosed(capsys, *[runs["ste"]] * 3), "3 runs", "one or two")


@pytest.mark.parametrize(("at", "said"), [("_add_gradient", "0 pairs of probes"), ("_pair", "2 pairs of probes")])
def test_ctrl_c_prints_what_is_known_so_far(runs, capsys, monkeypatch, tmp_path, at, said):
    from fogzo.diagnosis import probing

    inner, calls = getattr(probing, at), []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == (2 if at == "_add_gradient" else 3):
            raise KeyboardInterrupt
        inner(*given)

    monkeypatch.setattr(probing, at, interrupted)
    code, out, _ = diagnosed(capsys, runs["ste"], *FEW, "--page", tmp_path / "part.html")
    assert code == 0
    assert said in out
    assert "cut short" in out
    (found,) = json.loads((tmp_path / "part.json").read_text())
    assert (found["interrupted"], found["rows"][0]["health"]["scale"] > 0) == (True, True)


def test_a_run_of_an_experiment_is_diagnosed_also_where_what_it_began_from_is_gone(runs, capsys, tmp_path):
    config = (runs["fogzo"] / "config.yaml").read_text()
    named = config.replace("cell: null", "cell: hardtanh.fogzo").replace("experiment: null", "experiment: mlp_factors")
    assert named.count("mlp_factors") == named.count("hardtanh.fogzo") == 1
    of_weights_that_are_gone = named.replace("init_from: null", f"init_from: {tmp_path / 'gone.pt'}")
    assert of_weights_that_are_gone != named
    (tmp_path / "config.yaml").write_text(of_weights_that_are_gone)
    (tmp_path / "model.pt").write_bytes((runs["fogzo"] / "model.pt").read_bytes())
    code, out, err = diagnosed(capsys, tmp_path, *FEW)
    assert (code, out.count("network ")) == (0, 1), err


def test_the_number_of_probes_that_would_do_is_said():
    sure, unclear, lost = Interval(0.5, 0.4, 0.6), Interval(0.5, 0.1, 1.0), Interval(0.0, -1.0, 1.0)
    network = Row("network", 100, 0.0)

    def said(*tensors):
        return resolution([*tensors, network], 32)

    assert said(Row("a", 100, 0.0, matched=sure)) == "32 probes a batch resolve the bias of every tensor"
    assert said(Row("a", 98, 0.0, matched=unclear, factor=4.0), Row("b", 2, 0.0, matched=sure)) == (
        "98% of the weights are in tensors whose bias 32 probes a batch do not resolve: "
        "about --probes 128 would resolve these"
    )
    assert said(Row("a", 90, 0.0, matched=unclear, factor=2.0), Row("b", 10, 0.0, matched=lost)).endswith(
        "about --probes 64 would resolve 1 of these 2"
    )
    assert said(Row("a", 100, 0.0, matched=lost)).endswith("do not resolve, and no number in reach would")
    network = Row("network", 1000, 0.0)
    assert said(Row("a", 990, 0.0, matched=sure), Row("b", 4, 0.0, matched=lost)).startswith("less than 1% of the")


def closures_of(trainer):
    from fogzo.training.closure import BatchClosure

    return lambda b: BatchClosure(trainer, trainer.feed.batch(b))


@pytest.mark.parametrize("quantizer", ["fixed", "quest"])
def test_a_measurement_leaves_the_model_as_it_was_and_repeats_itself(quantizer):
    trainer = make(quantizer=quantizer)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}

    def once():
        return measure(trainer.codes.weights, closures_of(trainer), batches=2, probes=4, beta=0.9)

    found = once()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert all(p.grad is None for p in trainer.model.parameters())
    again = once()
    assert (found.of_tensor, found.of_fogzo) == (again.of_tensor, again.of_fogzo)
    assert [len(slopes) for slopes in found.of_tensor] == [4] * 8


def test_codes_dead_weights_and_distances_are_counted():
    model = nn.Linear(5, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-3.0, -0.4, 0.1, 0.9, 2.0]]))
    fogzo.quantize_model(model, fogzo.FixedScale(2, scale=1.0))
    health = tensor_health(fogzo.quantized_weights(model)[0])
    assert (health.dead, health.bins, health.scale) == (0.4, "4/4", 1.0)  # beyond ±1.5
    assert health.codes == pytest.approx([0.2, 0.2, 0.4, 0.2])
    assert health.distance == pytest.approx(0.4)


def test_dead_weights_that_come_back_are_counted_along_a_training():
    model = fogzo.quantize_model(nn.Linear(4, 1, bias=False), fogzo.FixedScale(2, scale=1.0))
    weights, course = fogzo.quantized_weights(model), Course()
    for step, latent in enumerate([[0.4, 2.0, 2.0, 0.1], [0.4, 1.0, 2.0, -3.0], [0.4, 1.0, 1.4, -3.0]]):
        with torch.no_grad():
            weights[0].latent.copy_(torch.tensor([latent]))
        course.add(step, weights)
    assert [(point.dead, point.revived) for point in course.points] == [(0.5, 0.0), (0.5, 0.25), (0.25, 0.25)]


def test_codes_that_flip_and_come_back_are_counted():
    model = fogzo.quantize_model(nn.Linear(4, 1, bias=False), fogzo.FixedScale(2, scale=1.0))
    (weight,) = fogzo.quantized_weights(model)
    places = iter([[0.4, 0.4, 0.4, 0.4], [-0.4, 0.4, 0.4, 0.4], [0.4, 1.4, 0.4, 0.4], [0.4, 1.4, 0.4, 0.4]])

    def step(_):
        with torch.no_grad():
            weight.latent.copy_(torch.tensor([next(places)]))

    step(0)
    flips = count_flips([weight], step, 3)
    assert flips.shares == [0.25, 0.5, 0.0]
    assert flips.oscillating == 0.25


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can forget a peak")
def test_memory_stays_within_two_weight_buffers_of_training():
    def made():
        torch.manual_seed(0)
        return fogzo.quantize_model(nn.Sequential(nn.Linear(4096, 2048), nn.Linear(2048, 2)), fogzo.FixedScale(2))

    model = made()
    x, y = torch.randn(8, 4096), torch.randint(2, (8,))

    def closure(*, backward):
        loss = nn.functional.cross_entropy(model(x), y)
        if backward:
            loss.backward()
        return loss.detach()

    weights = fogzo.quantized_weights(model)
    cpu = torch.device("cpu")

    def peak(work):
        PEAK.forget(cpu)
        at_rest = PEAK.read(cpu)
        work()
        return PEAK.read(cpu) - at_rest

    def look():
        rows_of(measure(weights, lambda b: closure, batches=2, probes=2, beta=0.9))

    looked = peak(look)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    estimator = fogzo.StraightThrough(weights)

    def train():
        for step in range(2):
            optimizer.zero_grad()
            estimator.estimate(closure, step=step)
            optimizer.step()

    trained = peak(train)
    buffer = 4 * sum(weight.latent.numel() for weight in weights)
    assert looked <= trained + 2.1 * buffer, (looked / buffer, trained / buffer)
