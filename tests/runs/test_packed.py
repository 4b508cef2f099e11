"""Packed records: lossless, found by what they computed, never used where a line is damaged; and scripts/records.py."""

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from helpers.cli import run_script
from helpers.made_up import edit, experiment, write

from fogzo.runs.folder import RunError, RunFolder
from fogzo.runs.identity import run_name
from fogzo.runs.packed import pack, unpack
from fogzo.runs.records import add, drop, drop_unusable, find, read_records

CONFIG = {
    "seed": 11,
    "cell": "deit.fogzo",
    "experiment": "twin",
    "phase": "confirm",
    "note": "β, and a line\u2028separator",
    "optimizer": {"name": "sgd", "lr": 1e-9, "betas": [0.9, 0.999]},
}
ROWS = [
    {"loss": 0.1 + 0.2, "step": 10, "seconds": 1e-7},
    {"step": 12, "loss": None, "event": "spike, 100 %", "flops": 1e22},
    {"loss": 1 / 3, "step": 20, "seconds": 2.0, "accuracy": 61.5},
]


def finished(results, rows=ROWS, run=CONFIG, **summary):
    """The folder of a run that is over."""
    folder = RunFolder(results / "runs" / run["experiment"] / run_name(run), run)
    for row in rows:
        folder.log(row)
    about = {"status": "finished", "seed": run["seed"], "cell": run["cell"], "experiment": run["experiment"]}
    folder.finish(about | {"accuracy": 61.5, "data": {"name": "made up"}} | summary)
    folder.close()
    return folder.path


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path.relative_to(tmp_path) / "results"


def test_a_packed_run_gives_every_file_back_to_the_byte(results):
    before = contents(finished(results))
    add(results)
    run = find(CONFIG, results / "records")
    assert run.metrics() == ROWS
    rows = "".join(json.dumps(row) + "\n" for row in run.metrics())
    assert {
        "config.yaml": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True).encode(),
        "summary.json": (json.dumps(run.summary, indent=2) + "\n").encode(),
        "metrics.jsonl": rows.encode(),
    } == before
    assert [list(row) for row in run.metrics()] == [list(row) for row in ROWS]


def test_a_run_that_diverged_before_its_first_row_is_packed_too(results):
    path = finished(results, rows=[], status="diverged", message="loss is nan")
    assert not (path / "metrics.jsonl").exists()
    assert add(results).new == [run_name(CONFIG)]
    assert find(CONFIG, results / "records").metrics() == []


def test_a_line_begins_with_what_people_look_for(results):
    finished(results)
    add(results)
    line = (results / "records/twin.jsonl").read_text()
    assert line.startswith('{"cell": "deit.fogzo", "seed": 11, "status": "finished", "metric": {"accuracy": 61.5}, "id')


def test_adding_again_changes_nothing_and_another_result_of_the_same_run_is_named_and_not_taken(results):
    path = finished(results)
    add(results)
    before = (results / "records/twin.jsonl").read_bytes()
    again = add(results, [path, *[path] * 2])
    assert (again.new, again.faults) == ([], [])
    (path / "summary.json").unlink()
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30}\n')
    assert add(results).unfinished == [path]
    finished(results, rows=ROWS[:1])
    (fault,) = add(results).faults
    assert (fault.place, fault.command) == (path, f"rm -r {path}")
    assert "twin.jsonl, line 1 has another result of this run" in fault.reason
    assert (results / "records/twin.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("summary.json", "61.5", "99.0", "not those that its digest was made of"),
        ("summary.json", '"digest"', '"digested"', "no digest"),
        ("summary.json", "{", "", "its summary.json cannot be read"),
        ("metrics.jsonl", "2.0", "2.5", "not those that its digest was made of"),
        ("metrics.jsonl", "2.0", "2.00", "not written as a run writes them"),
        ("metrics.jsonl", '{"step": 12', '{"st', "metrics are damaged"),
        ("config.yaml", "seed: 11", "seed: 12", "its summary says seed 11, its config 12"),
        ("config.yaml", "seed: 11", "- a", "its config.yaml cannot be read"),
        ("config.yaml", "seed: 11", "sed: 11", "its config.yaml or summary.json is not whole (KeyError: 'seed')"),
        ("config.yaml", "phase: confirm", "phase: tune", "trial of tuning"),
    ],
)
def test_a_damaged_folder_is_named_and_not_taken(file, old, new, reason, results):
    path = finished(results)
    (path / file).write_text((path / file).read_text().replace(old, new, 1))
    added = add(results)
    (fault,) = added.faults
    assert (added.new, fault.place, reason in fault.reason or fault.reason) == ([], path, True)
    assert not list(results.glob("records/*.jsonl"))


def test_a_disk_that_is_full_is_said_in_a_sentence_and_no_line_is_lost(results, monkeypatch):
    finished(results)
    add(results)
    (file,) = results.glob("records/*.jsonl")
    before = file.read_bytes()
    finished(results, run=CONFIG | {"seed": 12})

    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fogzo.runs.records.atomic_write", full)
    with pytest.raises(RunError, match=r"\.jsonl cannot be written \(No space left on device\): make room, and pack"):
        add(results)
    assert file.read_bytes() == before


def edited(**values):
    return lambda said: json.dumps(said | values)


def inside(part, **values):
    return lambda said: json.dumps(said | {part: said[part] | values})


def column(name, values):
    return lambda said: json.dumps(
        said | {"metrics": said["metrics"] | {"columns": said["metrics"]["columns"] | {name: values}}}
    )


def without(part):
    return lambda said: json.dumps({key: value for key, value in said.items() if key != part})


# the one list of what can be wrong with a line, wherever records are read
TAMPERED = {
    "cut short": (lambda said: json.dumps(said)[:-30], "damaged"),
    "no JSON": (lambda said: "<<<<<<< HEAD", "damaged"),
    "empty": (lambda said: "", "damaged"),
    "a list": (lambda said: "[]", "damaged"),
    "another key": (edited(more=1), "damaged"),
    "no summary": (without("summary"), "damaged"),
    "no digest": (without("digest"), "damaged"),
    "config is no group": (edited(config=[]), "damaged"),
    "another result": (inside("summary", accuracy=99.0), "its digest"),
    "another seed in the summary": (inside("summary", seed=99), "its digest"),
    "another status": (inside("summary", status="fine"), "its digest"),
    "a number as large as none": (inside("summary", seconds=10**400), "its digest"),
    "another digest": (edited(digest="0" * 64), "its digest"),
    "another value in a row": (column("seconds", [1e-7, 2.5]), "its digest"),
    "a value less": (column("seconds", [1e-7]), "damaged"),
    "a value more": (column("seconds", [1e-7, 2.0, 3.0]), "damaged"),
    "a word for a number": (column("seconds", [1e-7, "2.0"]), "its digest"),
    "a row less": (inside("metrics", rows=[0, 1]), "damaged"),
    "rows in another order": (inside("metrics", rows=[1, 0, 2]), "its digest"),
    "another config": (inside("config", optimizer={"lr": 1}), "begins with identity"),
    "another cell in the config": (inside("config", cell="deit.ste"), "its summary says cell deit.fogzo"),
    "another experiment in the config": (inside("config", experiment="other"), "its summary says experiment twin"),
    "another cell at the front": (edited(cell="deit.ste"), "begins with cell deit.ste"),
    "another result at the front": (edited(metric={"accuracy": 99.0}), "begins with metric"),
    "another identity": (edited(identity="00000000"), "begins with identity 00000000"),
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_a_line_that_is_damaged_or_was_changed_is_named_and_never_used(kind, results):
    change, reason = TAMPERED[kind]
    for seed in (11, 12, 13):
        finished(results, run=CONFIG | {"seed": seed})
    add(results)
    file = results / "records/twin.jsonl"
    lines = file.read_text().split("\n")
    lines[1] = change(json.loads(lines[1]))
    file.write_text("\n".join(lines))
    read = read_records(file)
    assert [run.config["seed"] for run in read.runs.values()] == [11, 13]
    (fault,) = read.faults
    assert str(fault).startswith("results/records/twin.jsonl, line 2: it ")
    assert reason in fault.reason
    assert [gone.line for gone in drop_unusable(results)] == [2]
    assert list(read_records(file).runs) == list(read.runs)


@pytest.mark.parametrize("kind", ["another result", "another config"])
def test_a_run_whose_line_was_changed_is_refused_before_it_is_trained_again(kind, results):
    finished(results)
    add(results)
    file = results / "records/twin.jsonl"
    file.write_text(TAMPERED[kind][0](json.loads(file.read_text())) + "\n")
    with pytest.raises(RunError, match=r"twin\.jsonl, line 1: it was changed.*drop --unusable experiment=twin"):
        find(CONFIG, results / "records")


def test_a_line_that_is_there_twice_is_named_and_two_results_of_one_run_are_both_not_used(results):
    finished(results)
    add(results)
    file = results / "records/twin.jsonl"
    line = file.read_text()
    file.write_text(line + line)
    assert [(fault.line, fault.reason) for fault in read_records(file).faults] == [(2, "it repeats line 1")]
    assert find(CONFIG, results / "records").line == 1
    said = unpack(line.removesuffix("\n"), file, 1)
    (results / "runs").rename(results / "moved")
    other = finished(results, rows=ROWS[:1])
    summary = json.loads((other / "summary.json").read_text())
    file.write_text(line + pack(said.config, summary, (other / "metrics.jsonl").read_bytes()) + "\n")
    read = read_records(file)
    assert [(fault.line, fault.reason) for fault in read.faults] == [
        (line, "lines 1, 2 give one run different results") for line in (1, 2)
    ]
    with pytest.raises(RunError, match="different results"):
        find(CONFIG, results / "records")


def test_runs_of_an_experiment_do_not_stand_in_the_file_of_another(results):
    finished(results)
    add(results)
    (results / "records/twin.jsonl").rename(results / "records/other.jsonl")
    (fault,) = read_records(results / "records/other.jsonl").faults
    assert fault.reason == "it is a run of experiment twin"


def test_a_run_is_found_by_what_it_computes_its_cell_and_its_experiment_alone(results):
    finished(results)
    recipe = {"seed": 0, "cell": None, "experiment": None, "model": {"name": "mlp"}} | {
        group: {"name": group} for group in ("quantizer", "estimator")
    }
    path = finished(results, run=recipe | {"experiment": "recipes"})
    config = yaml.safe_load((path / "config.yaml").read_text()) | {"experiment": None}
    path.rename(results / "runs/none")
    (results / "runs/none/config.yaml").write_text(yaml.safe_dump(config))
    summary = json.loads((results / "runs/none/summary.json").read_text())
    RunFolder.view(results / "runs/none", config).finish(summary | {"experiment": None})
    add(results)
    records = results / "records"
    assert find(CONFIG | {"progress": "bar"}, records).line == 1
    assert find(recipe, records).place == records / "recipes.jsonl"
    assert find(CONFIG | {"seed": 12}, records) is None
    assert find(CONFIG | {"cell": "deit.ste"}, records) is None
    assert find(CONFIG | {"experiment": "other"}, records) is None


def test_what_is_dropped_is_one_line_less_and_comes_back_where_it_was(results):
    for seed in (11, 12, 13):
        finished(results, run=CONFIG | {"seed": seed})
    add(results)
    file = results / "records/twin.jsonl"
    before = file.read_text().split("\n")
    assert [run.line for run in drop(results, lambda run: run.config["seed"] == 12)] == [2]
    assert file.read_text().split("\n") == [before[0], *before[2:]]
    assert add(results).new == [run_name(CONFIG | {"seed": 12})]
    assert file.read_text().split("\n") == before
    drop(results, lambda run: True)
    assert not file.exists()


def git(folder, *words):
    done = subprocess.run(
        ["git", "-c", "user.name=x", "-c", "user.email=x@y", *words], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_branches_that_add_different_runs_merge_without_conflict(results, tmp_path, request):
    (tmp_path / ".gitattributes").write_text((request.config.rootpath / ".gitattributes").read_text())
    git(tmp_path, "init", "-q", "-b", "main")
    seeds = {"main": (14, 18), "one": (13, 15, 16), "two": (11, 15, 17)}
    for branch, theirs in seeds.items():
        if branch != "main":
            git(tmp_path, "checkout", "-q", "-b", branch, "main")
        made = [finished(results, run=CONFIG | {"seed": seed}) for seed in theirs if seed != 15 or branch == "one"]
        add(results, [*made, *results.glob("runs/twin/*seed15*")] if branch != "main" else made)
        git(tmp_path, "add", ".gitattributes", "results/records/twin.jsonl")
        git(tmp_path, "commit", "-q", "-m", branch)
    git(tmp_path, "merge", "-q", "--no-edit", "one")
    read = read_records(results / "records/twin.jsonl")
    assert sorted(run.config["seed"] for run in read.runs.values()) == [11, 13, 14, 15, 16, 17, 18]
    assert [fault for fault in read.faults if "repeats" not in fault.reason] == []
    drop_unusable(results)
    add(results)
    assert [run.config["seed"] for run in read_records(results / "records/twin.jsonl").runs.values()] == [
        *(11, 13, 14, 15, 16, 17, 18)
    ]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with six records, the working directory: the records by cell and seed."""
    monkeypatch.chdir(tmp_path)
    return write(tmp_path, experiment(settings=("deit",), methods={"ste": None, "fogzo": None}), rows=2)


@pytest.fixture
def script(project, capsys):
    """Runs the command in the project: its exit code, or what it said at its end, and what it printed."""

    def run(*words):
        code = run_script("scripts/records.py", *words, "--root", ".")
        return code, capsys.readouterr().out

    return run


def test_records_are_listed_and_a_single_one_is_shown_whole(script):
    code, out = script("show", "cell=deit.ste")
    assert (code, out.count("\n"), "line 1: deit.ste-seed11-" in out) == (0, 3, True)
    _, out = script("show", "cell=deit.ste", "seed=12")
    for part in ("seed: 12\n", '"status": "finished"', '{"step": 500, "loss": '):
        assert part in out


def test_what_is_dropped_is_said_with_the_folder_from_which_it_would_come_back(script, project):
    name = script("show", "cell=deit.ste")[1].split()[3]
    folder = Path("results/runs/twin", name)
    folder.mkdir(parents=True)
    code, out = script("drop", "cell=deit.ste", "seed=11,13")
    assert (code, out.count("dropped: "), f"rm -r {folder}" in out) == (0, 2, True)
    assert script("check")[1] == "results/records/twin.jsonl: 4 runs\n"


@pytest.mark.parametrize("words", [["drop"], ["drop", "seed=99"], ["drop", "sed=11"], ["show", "seed="]], ids=str)
def test_what_chooses_nothing_is_refused_and_takes_nothing_out(words, script):
    code, _ = script(*words)
    assert code.startswith("error: ")
    assert script("check")[1] == "results/records/twin.jsonl: 6 runs\n"


def test_a_record_that_was_changed_is_named_by_check_and_goes_with_unusable(script, project):
    edit(project["deit.fogzo", 12], accuracy=99.0)
    code, out = script("check")
    assert code.startswith("error: results/records/twin.jsonl, line 5: it was changed")
    assert "`python scripts/records.py drop --unusable experiment=twin`" in code
    assert out == "results/records/twin.jsonl: 5 runs\n"
    assert script("drop", "--unusable", "experiment=other") == (0, "")
    assert script("drop", "--unusable")[1].startswith("dropped: results/records/twin.jsonl, line 5: it was changed")
    assert script("check")[0] == 0


def test_a_folder_that_is_not_over_or_not_there_is_named(script):
    begun = Path("results/runs/twin/begun")
    begun.mkdir(parents=True)
    (begun / "config.yaml").write_text("seed: 1\n")
    assert script("add") == (0, f"0 added\nnot over: {begun}\n")
    assert script("add", str(begun))[0] == 1
    assert script("add", "nowhere")[0].startswith("error: nowhere: its config.yaml cannot be read")
