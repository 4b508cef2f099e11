"""A project folder with made-up records: for tests of tables, figures and the report.  No number in it is a result."""

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

import yaml

from fogzo.evidence.frame import gather
from fogzo.evidence.parse import parse
from fogzo.runs.files import atomic_write, read_yaml
from fogzo.runs.identity import digest_of
from fogzo.runs.packed import Run, pack

METHODS = {  # those of configs/methods.yaml
    "ste": None,
    "fogzo": {"search": {"estimator.beta_min": [0.9, 0.999]}},
    "slope": None,
    "noisy_ste": {"tuned_as": None},
    "ste_longer": None,
}


@dataclass(frozen=True)
class Record:
    """Where a made-up record stands."""

    file: Path
    cell: str
    seed: int

    @property
    def number(self) -> int:
        """Its line, from 1."""
        said = [json.loads(line) for line in self.file.read_text(encoding="utf-8").splitlines()]
        return 1 + [(one["cell"], one["seed"]) for one in said].index((self.cell, self.seed))

    def replace(self, changed) -> None:
        """Put what ``changed`` makes of the line in its place; None takes it out."""
        lines = self.file.read_text(encoding="utf-8").splitlines()
        at = self.number - 1
        new = changed(json.loads(lines[at]))
        lines[at : at + 1] = [] if new is None else [new]
        atomic_write(self.file, "".join(f"{line}\n" for line in lines).encode())


GONE = object()  # a value to edit away
GROUPS = ("model", "data", "quantizer", "estimator", "activations", "optimizer", "schedule")


def experiment(
    name="twin", settings=("deit", "resnet"), methods=METHODS, metric="accuracy", seeds=(11, 12, 13), **more
):
    """An experiment of settings and methods, with a published table of the same name."""
    return {
        "name": name, "title": f"Made-up experiment {name}", "scale": "mini", "table": name,
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


def write(root: Path, made: dict, *, effect=None, tuned=True, rows=20) -> dict[tuple[str, int], Record]:
    """Write experiment, published numbers, tuned values and a record for every cell and seed; returns the records.

    Args:
        effect: from cell name to how far (in accuracy points) the cell lies above its baseline.
    """
    name, cells = made["name"], parse(made).cells
    for folder in ("configs/experiment", "results/paper", "results/tuned"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    dump(root / f"configs/experiment/{name}.yaml", {"experiment": made})
    published = {"ste": 62.0, "fogzo": 70.0} if made["metric"] == "accuracy" else {"ste": 62.0, "fogzo": 60.0}
    described = {"model": "Net", "data": "Images", "metric": made["metric"]}
    table = {
        "claim": "FOGZO is better than STE at the same number of steps",
        "setting": "nets on images",
        "rows": {s["paper"]: described | published for s in made["settings"].values()},
    }
    numbers = root / "results/paper/numbers.yaml"
    dump(numbers, (read_yaml(numbers) or {}) | {name: table})
    if tuned:
        dump(root / f"results/tuned/{name}.yaml", {name: entry_of(made, cell) for name, cell in cells.items()})
    effect = effect or (lambda cell: 0.0)
    file = root / f"results/records/{name}.jsonl"
    file.parent.mkdir(exist_ok=True)
    asked = [(cell, seed) for cell in cells.values() for seed in made["seeds"]]
    packed = [line(made, cell, seed, effect(cell.name), rows) for cell, seed in asked]
    file.write_text("".join(f"{one}\n" for one in packed), encoding="utf-8")
    return {(cell.name, seed): Record(file, cell.name, seed) for cell, seed in asked}


def line(made, cell, seed, effect=0.0, rows=20) -> str:
    """One run's line, packed as a finished run's is."""
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
    done = {"status": "finished", **about, **same, "steps": 1000, "data": {"name": "made up"}, **ends}
    return signed(config, done, lines)


def signed(config, summary, rows) -> str:
    """The line of a run with these rows, its digest that of what it says."""
    metrics = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return pack(config, {**summary, "digest": digest_of(summary, metrics)}, metrics)


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


def edit(record: Record, **values) -> None:
    """Change a summary by hand, its digest left as it was."""

    def changed(said):
        summary = said["summary"] | values
        said["summary"] = {key: value for key, value in summary.items() if value is not GONE}
        return json.dumps(said)

    record.replace(changed)


def sign(record: Record) -> None:
    """Give a record the digest of what it says now."""
    change(record, 0)


def change(record: Record, number: int, **values) -> None:
    """Change a row (from 1), and with the last one the summary; with a new digest, as who means to deceive would."""

    def changed(said):
        rows, summary = Run(Path(), 0, {}, {}, said["metrics"]).metrics(), said["summary"]
        for of in [rows[number - 1], *([summary] if number == len(rows) else [])] if number else []:
            of |= values
            for key in [key for key, value in values.items() if value is GONE]:
                del of[key]
        return signed(said["config"], summary, rows)

    record.replace(changed)


def remove(record: Record) -> None:
    """Take a record out."""
    record.replace(lambda said: None)
