"""What stands in the README and in docs/ is true: commands run, snippets run, links lead somewhere."""

import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from functools import partial

import pytest
import torch
from helpers.cli import ROOT, run_alone, run_script
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from fogzo import estimators
from fogzo.quantize import quantized_weights
from fogzo.training.draft import build_model

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "results" / "README.md", *(ROOT / "docs").glob("*.md")]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LIBRARY = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


def blocks(language, page=README):
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def commands(page=README):
    lines = "".join(blocks("bash", page)).replace("\\\n", " ").splitlines()
    return [line.partition("#")[0].strip() for line in lines if line.strip()]


def trainings():
    """The README's single runs; those of larger models are for the slow tests."""
    for command in commands():
        if command.startswith("python train.py") and "-m" not in command.split() and "plan=true" not in command:
            yield pytest.param(command, marks=[pytest.mark.slow] if "model=" in command else [])


def composed(command):
    overrides = [word for word in shlex.split(command.partition("train.py")[2]) if not word.startswith("-")]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", overrides)


def test_the_library_snippet_runs_as_it_stands_without_any_of_the_extras(tmp_path):
    """The method needs torch alone."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [name.partition(">")[0] for name in needed] == ["torch"]
    (snippet,) = blocks("python")
    done = run_alone(snippet, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 10


def loops():
    """The snippets of the section on loops, by their headings."""
    section = LIBRARY.partition("## Your loop")[2].partition("\n## ")[0]
    return {text.partition("\n")[0]: "".join(blocks("python", text)) for text in section.split("\n### ")[1:]}


def test_the_table_of_loops_leads_to_each_snippet():
    anchors = re.findall(r"^\| \[.*?\]\(#([a-z-]+)\)", LIBRARY, re.MULTILINE)
    assert anchors == [re.sub(r"[^a-z -]", "", name.lower()).replace(" ", "-") for name in loops()]


@pytest.mark.filterwarnings("ignore:.*pin_memory", "ignore:.broadcast_buffers. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("name", "backend"),
    [*((name, "eager") for name in loops()), pytest.param("torch.compile", "inductor", marks=pytest.mark.slow)],
)
def test_a_loop_of_the_library_page_runs(name, backend, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for key, value in launched.items() if name == "DistributedDataParallel" else ():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    snippets, names = loops(), {"__name__": "snippet"}
    step = "optimizer.zero_grad()\nestimate = estimator.estimate(closure, step=step)\noptimizer.step()\n"
    if name == "Hugging Face Trainer":
        exec(snippets[name], names)
        assert names["trainer"].state.global_step == 20
        assert (tmp_path / "llama-4bit" / "compressed" / "config.json").exists()
        return
    try:
        exec(snippets["Plain PyTorch"] + (snippets[name] if name != "Plain PyTorch" else "") + step, names)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert names["estimate"].agreement.isfinite()


@pytest.mark.parametrize("command", list(trainings()))
def test_a_training_command_of_the_readme_runs(command, tmp_path, capsys):
    steps = "steps=2" if "model=" in command else "steps=20"
    assert run_script(*command.split()[1:], steps, "progress=lines", f"results_dir={tmp_path}") == 0
    assert "finished:" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("torchrun")])
def test_a_command_of_the_readme_for_several_processes_runs(command, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words = [*launcher, *command.split()[1:], "steps=2", "device=cpu", f"results_dir={tmp_path}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "finished:" in done.stdout


@pytest.mark.parametrize("command", [c for c in commands() if "model=" in c and "plan=true" not in c])
def test_a_longer_command_of_the_readme_composes_and_builds_its_model(command):
    assert quantized_weights(build_model(composed(command)))


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in commands() if "plan=true" in c])
def test_a_plan_of_the_readme_is_printed(command, capsys):
    assert run_script(*command.split()[1:]) == 0
    plan = capsys.readouterr().out
    assert "331,966,720 parameters" in plan
    assert "warning:" not in plan


PLANS = {c for c in commands() if "plan=true" in c}


@pytest.mark.parametrize(
    "command", sorted(PLANS | {c for c in commands(TRAINING) if "train.py" in c and " -m " not in c})
)
def test_a_training_command_of_the_pages_composes(command):
    composed(command.partition("&")[0])


COMMANDS = {file.name for file in (ROOT / "scripts").glob("*.py") if "__main__" in file.read_text(encoding="utf-8")}


@pytest.mark.parametrize("script", sorted(COMMANDS - {"run_exported.py"}))  # which is to be copied, and stands alone
def test_a_script_that_is_asked_for_help_gives_it(script, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    assert run_script(f"scripts/{script}", "--help") == 0
    assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize("script", ["prepare_imagenet100", "prepare_text"])
def test_a_script_knows_the_options_that_the_pages_give_it(script, capsys):
    assert run_script(f"scripts/{script}.py", "--help") == 0
    known = capsys.readouterr().out
    given = [c for c in commands(TRAINING) if f"scripts/{script}.py" in c]
    assert given
    assert {option for command in given for option in re.findall(r" (--[a-z-]+)", command)} <= set(
        re.findall(r"--[a-z][a-z0-9-]+", known)
    )


def test_the_sweep_of_the_readme_finds_its_experiment_and_tuned_values(tmp_path):
    assert "python train.py -m experiment=mlp_compute" in commands()
    words = ["-m", "experiment=mlp_compute", "cell=ste", "seed=1", "steps=20", "progress=lines"]
    assert run_script("train.py", *words, f"results_dir={tmp_path}") == 0
    assert [path.name[:9] for path in (tmp_path / "runs" / "mlp_compute").iterdir()] == ["ste-seed1"]


def test_the_command_of_the_log_about_agreement_prints_a_line_for_every_cell_that_has_the_column(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)  # as the script does
    assert run_script("scripts/autocorrelation.py", "agreement") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("of agreement")
    named = [line.split()[:2] for line in lines[1:]]
    assert ["lsq_mini", "llama.fogzo"] in named
    assert all(-1 <= float(line.split()[-1]) <= 1 for line in lines[1:])


EXTENDING = dict(
    re.findall(r"^## An? ([\w ]+)\n(.*?)(?=^## |\Z)", (ROOT / "docs/extending.md").read_text("utf-8"), re.M | re.S)
)


@pytest.mark.parametrize("part", EXTENDING)
def test_an_example_of_what_to_add_runs_as_it_stands_in_thirty_lines(part, tmp_path, monkeypatch, capsys):
    for place in ("configs", "train.py"):
        copy = shutil.copytree if (ROOT / place).is_dir() else shutil.copy
        copy(ROOT / place, tmp_path / place)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for content in blocks("(?:python|yaml)", EXTENDING[part]):
        first, lines = content.partition("\n")[0], content.strip().splitlines()[1:]
        file = tmp_path / first.removeprefix("# ")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        assert len(lines) <= 30
    (command,) = (line for line in commands(EXTENDING[part]) if line.startswith("python train.py"))
    short = ["progress=lines", "threads=1", "optimizer.lr=0.03", *([] if " -m " in command else ["steps=4"])]
    assert run_script(str(tmp_path / "train.py"), *command.split()[2:], *short) == 0, capsys.readouterr().err
    assert re.search(r"finished: test accuracy|fogzo .*accuracy", capsys.readouterr().out)


def test_the_library_page_lists_every_estimator_with_its_class_and_whether_it_has_a_state():
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| [^|]+ \| ([^|]+) \|", LIBRARY, re.MULTILINE)
    listed = {name: (kind, "*state*" in what) for kind, name, what in rows}
    baselines = {"ste", "ste_longer", "slope"}  # the plain gradient, and FOGZO at β = 1
    names = {file.stem for file in (ROOT / "configs/estimator").glob("*.yaml")} - baselines
    assert listed.keys() == names
    for name, (kind, has_state) in listed.items():
        target = OmegaConf.load(ROOT / f"configs/estimator/{name}.yaml").get("_target_", "fogzo.FOGZO")
        assert kind in target.split(".")
        assert has_state == (getattr(estimators, kind).state_dict is not estimators.Estimator.state_dict)


def test_every_make_target_that_the_pages_name_exists():
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set()
    for page in PAGES:
        for words in re.findall(r"`make ([a-z -]+)`|^make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            named |= set(" ".join(words).split())
    assert named
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
