"""`scripts/records.py`: what it prints, and its exit codes."""

from pathlib import Path

import pytest
from helpers.cli import run_script
from helpers.made_up import edit, experiment, write


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
