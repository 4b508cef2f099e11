"""A project folder with made-up records: for tests of tables, figures and the report.  No number in it is a result."""

import json
import math
import random
from pathlib import Path

import yaml

from fogzo.evidence.frame import gather
from fogzo.evidence.parse import parse
from fogzo.runs.identity import digest_of, identity

METHODS = {  # those of configs/methods.yaml
    "ste": None,
    "fogzo": {"search": {"estimator.beta_min": [0.9, 0.999]}},
    "slope": None,
    "noisy_ste": {"tuned_as": None},
    "ste_longer": None,
}

GONE = object()  # a value to edit away
GROUPS = ("model", "data", "quantizer", "estimator", "activations", "optimizer", "schedule")


def experiment(
    name="twin", settings=("deit", "resnet"), methods=METHODS, metric="accuracy", seeds=(11, 12, 13), **more
):
    """An experiment of settings and methods, with a published table of the same name."""
    return {
        "name": name, "title": f"Made-up experiment {name}", "scale": "mini", "table": name, "stage": "confirm",
        "metric": metric, "seeds": list(seeds), "baseline": "ste",
        "settings": {
            s: {"label": f"{s} | a net, 2 bit", "overrides": [f"model={s}"], "paper": f"{s}_row"} for s in settings
        },
        "methods": dict(methods),
        "tuning": {
            "seed": 0, "trials": 4, "metric": "train_loss", "search": {"optimizer.lr": [0.01, 0.1]},
            "chosen": f"results/tuned/{name}.yaml",
        },
    } | more  # fmt: skip


def gathered(made, *args):
    """What is found of an experiment, given as its file would."""
    return gather(parse(made), *args)


def write(root: Path, made: dict, *, effect=None, tuned=True, rows=20) -> dict[tuple[str, int], Path]:
    """Write experiment, published numbers, tuned values and a record for every cell and seed; returns their folders.

    Args:
        effect: from cell name to how far (in accuracy points) the cell lies above its baseline.
    """
    name, cells = made["name"], parse(made).cells
    for folder in ("configs/experiment", "results/paper", "results/tuned"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    dump(root / f"configs/experiment/{name}.yaml", {"experiment": made})
    published = {"ste": 62.0, "fogzo": 70.0} if made["metric"] == "accuracy" else {"ste": 62.0, "fogzo": 60.0}
    described = {"model": "Net", "data": "Images", "metric": made["metric"]}
    dump(
        root / f"results/paper/{name}.yaml",
        {
            "claim": "FOGZO is better than STE at the same number of steps",
            "setting": "nets on images",
            "rows": {s["paper"]: described | published for s in made["settings"].values()},
        },
    )
    if tuned:
        dump(root / f"results/tuned/{name}.yaml", {name: entry_of(made, cell) for name, cell in cells.items()})
    effect = effect or (lambda cell: 0.0)
    return {
        (cell.name, seed): record(root / "results/runs" / name, made, cell, seed, effect(cell.name), rows)
        for cell in cells.values()
        for seed in made["seeds"]
    }


def record(folder: Path, made, cell, seed, effect=0.0, rows=20, **summary) -> Path:
    """One run's folder, as a finished run leaves it."""
    noise = random.Random(f"{cell.name} {seed}")
    shared = random.Random(f"{cell.setting.name} {seed}").gauss(0, 0.5)
    about = {
        "seed": seed, "cell": cell.name, "experiment": made["name"], "phase": "confirm", "scale": made["scale"],
    }  # fmt: skip
    config = config_of(cell) | about
    unit = {"ste": 3, "fogzo": 5, "slope": 5, "noisy_ste": 3, "ste_longer": 5}.get(
        cell.method.name.removesuffix("_1"), 4
    )
    lines = []
    for row in range(1, rows + 1):
        part = row / rows
        accuracy = 70 * (1 - math.exp(-4 * part)) + effect * part + shared + noise.gauss(0, 0.25)
        loss = 2.5 * math.exp(-3 * part) + 0.3 - 0.02 * effect * part + 0.02 * shared + noise.gauss(0, 0.01)
        measured = {"perplexity": math.exp(loss + 3)} if cell.metric == "perplexity" else {"accuracy": accuracy}
        lines.append(
            {
                "step": round(1000 * part), "loss": loss, "forwards": 1, "backwards": 1, "flops": unit * 1e12 * part,
                "forward_equivalents": round(unit * 1000 * part), "examples": 1, "seconds": 20.0 * unit * part,
                "train_loss": loss, "test_loss": loss + 0.1, **measured,
            }
        )  # fmt: skip
    same = {key: lines[-1][key] for key in lines[-1] if key not in ("step", "loss")}
    ends = {"git_commit": "0123456789abcdef", "git_dirty": False, "versions": {"torch": "2.14.1"}, "device": "cpu"}
    path = folder / f"{cell.name}-seed{seed}-{identity(config)}"
    path.mkdir(parents=True)
    dump(path / "config.yaml", config)
    done = {"status": "finished", **about, **same, "steps": 1000, "data": {"name": "made up"}, **ends, **summary}
    (path / "summary.json").write_text(json.dumps(done), encoding="utf-8")
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    sign(path)
    return path


def sign(path: Path) -> None:
    """Give a record the digest of what it says now."""
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    edit(path, digest=digest_of(summary, path / "metrics.jsonl"))


def config_of(cell) -> dict:
    """What a run of ``cell`` was asked for: its overrides, and the values that tuning chose."""
    config: dict = {"steps": 1000}
    chosen = [f"{key}={value}" for key, value in tuned_of(cell).items()]
    for override in [*cell.overrides, *chosen]:
        key, _, text = override.partition("=")
        *groups, last = key.split(".")
        place = config
        for group in groups:
            place = place.setdefault(group, {})
        value = yaml.safe_load(text)
        place[last] = {"name": value} if not groups and last in GROUPS else value
    return config


def tuned_of(cell) -> dict:
    return {key: values[-1] for key, values in cell.search.items()}


def entry_of(made, cell) -> dict:
    """What tuning leaves of a cell that has tried as many points as the experiment asks for; the last one is best."""
    tried = cell.points()[-made["tuning"]["trials"] :]
    entry = {"values": tried[-1], "on_edge_of_grid": [], "trials": 4, "tried": [{"values": point} for point in tried]}
    model = parse(made).cells[cell.tuned_as] if cell.tuned_as else cell
    return entry | {"borrowed": {key: value for key, value in tuned_of(model).items() if key not in cell.search}}


def dump(path: Path, content) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def edit(path: Path, **values) -> None:
    """Change a summary by hand, its digest left as it was."""
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8")) | values
    summary = {key: value for key, value in summary.items() if value is not GONE}
    (path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def lines(folder, edited):
    file = folder / "metrics.jsonl"
    file.write_text("".join(f"{line}\n" for line in edited(file.read_text().splitlines())))


def change(folder, number, *, signed=True, **values):
    """Change a row (from 1), and with the last one the summary; with a new digest, as who means to deceive would."""

    def changed(rows):
        row = json.loads(rows[number - 1]) | values
        rows[number - 1] = json.dumps({key: value for key, value in row.items() if value is not GONE})
        if number == len(rows):
            edit(folder, **values)
        return rows

    lines(folder, changed)
    if signed:
        sign(folder)
