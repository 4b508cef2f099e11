"""`make tables report`: the same bytes from the same records, in seconds, and a report that stands alone."""

import csv
import json
import re
import resource
import shutil
import statistics
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from helpers.cli import ROOT, run
from helpers.made_up import Record, dump, edit, experiment, remove, write

from fogzo.evidence.figures.style import colour
from fogzo.evidence.parse import parse, standard_methods
from fogzo.runs.files import read_yaml

RESULTS = {"twin.md", "twin.csv", "controls.csv", "twin_differences.svg"}
SITE = {"report.html", "twin.tex", "twin_controls.tex"} | {
    f"{name}.{ending}" for name in ("twin", "twin_differences", "members") for ending in ("svg", "png")
}


def make(what, root, expect=0):
    done = run(f"scripts/make_{what}.py", "--root", root, strict=True)
    assert done.returncode == expect, done.stderr
    return done


def outputs(root):
    results = [*(root / "results").glob("tables/*"), *(root / "results").glob("figures/*")]
    site = [file for file in (root / "site").rglob("*") if file.is_file()]
    return [{file.name: file.read_bytes() for file in files} for files in (results, site)]


def test_a_disk_without_room_is_named_in_one_sentence_and_what_was_there_stays(built):
    before = outputs(built)
    for what, place in (("tables", "results/figures/"), ("report", "site/figures/")):
        command = [sys.executable, f"scripts/make_{what}.py", "--root", str(built)]
        # no file may grow beyond a byte, which needs no disk of our own
        limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **limit)
        assert re.fullmatch(
            rf"error: {place}\S+ cannot be written \(File too large\): make room, and run it again\n", done.stderr
        )
        assert done.returncode == 1
    assert outputs(built) == before


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A project of one experiment and what `make tables` made of it; read only."""
    root = tmp_path_factory.mktemp("built")
    made = experiment(seeds=(11, 12, 13, 14))
    made["settings"]["resnet"]["metric"] = "perplexity"
    write(root, made, effect=lambda cell: 2.0 * (cell == "deit.fogzo"))
    explored = experiment("hunch", exploratory=True, table="twin")
    write(root, explored)
    (root / "README.md").write_text("Before\n\n<!--= claims(all) -->\nlast year's\n<!--/-->\n\nAfter\n")
    (root / "docs").mkdir()
    (root / "docs/replication.md").write_text(
        "# Answers\n\nOf <!--= runs([twin]) --><!--/--> runs.\n\n![drawn](../results/figures/twin_differences.svg)\n"
    )
    (root / "docs/choosing.md").write_text("# Which\n\n![drawn](../results/figures/twin_differences.svg)\n")
    claim = {"claim": "Nets are better", "trust": "high", "source": "notes", "method": "fogzo", "experiments": ["twin"]}
    dump(root / "results/paper/claims.yaml", {"nets": claim})
    make("tables", root)
    make("report", root)
    return root


def test_the_same_records_give_the_same_bytes_wherever_they_lie(built, tmp_path):
    first = outputs(built)
    assert [set(files) for files in first] == [RESULTS, SITE | {"claim_nets.svg", "claim_nets.png"}]
    shutil.copytree(built, tmp_path / "copy")
    for folder in ("results/tables", "results/figures", "site"):
        shutil.rmtree(tmp_path / "copy" / folder)
    make("tables", tmp_path / "copy")
    make("report", tmp_path / "copy")
    assert outputs(tmp_path / "copy") == first
    assert not any(str(built).encode() in data for files in first for data in files.values())


def test_exploratory_runs_are_in_no_result(built):
    assert not any(b"hunch" in data for files in outputs(built) for data in files.values())


def test_hand_written_pages_get_their_tables_between_the_marks(built):
    readme = (built / "README.md").read_text()
    assert readme.startswith("Before\n\n<!--= claims(all) -->\n| the paper's claim |")
    assert readme.endswith("<!--/-->\n\nAfter\n")
    assert "last year" not in readme
    assert "| Nets are better | confirmed in part |" in readme
    answers = (built / "docs/replication.md").read_text()
    assert "Of <!--= runs([twin]) -->40<!--/--> runs." in answers


def test_a_page_that_asks_for_what_there_is_not_is_named(built, tmp_path):
    shutil.copytree(built, tmp_path / "copy")
    (tmp_path / "copy/README.md").write_text("<!--= claims(twain) --><!--/-->\n")
    done = make("tables", tmp_path / "copy", expect=1)
    assert done.stderr.startswith("error: README.md asks for `claims(twain)`")


def test_a_deleted_run_leaves_a_dash_and_a_bad_one_is_named_while_the_rest_is_made(built, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(built, root)
    for seed in (11, 12, 13, 14):
        remove(Record(root / "results/records/twin.jsonl", "deit.fogzo", seed))
    make("tables", root)
    make("report", root)
    command = "python train.py -m experiment=twin cell=deit.fogzo seed=11,12,13,14"
    assert command in (root / "results/tables/twin.md").read_text()
    assert command in (root / "site/report.html").read_text()
    spoilt = Record(root / "results/records/twin.jsonl", "deit.slope", 11)
    edit(spoilt, accuracy=99.0)
    place = f"results/records/twin.jsonl, line {spoilt.number}"
    tuned = read_yaml(root / "results/tuned/twin.yaml")
    tuned["deit.ste"]["given"] = ["steps=5"]
    dump(root / "results/tuned/twin.yaml", tuned)
    done = make("tables", root, expect=1)
    assert (
        "error: twin, deit.ste: tuned with steps=5, and runs rest on that: run `python scripts/tune.py" in done.stderr
    )
    assert done.stderr.startswith(f"error: {place}: it was changed")
    assert place in (root / "results/tables/twin.md").read_text()
    assert "Tuned otherwise: twin, deit.ste: tuned with steps=5" in (root / "results/tables/twin.md").read_text()


def test_a_damaged_file_of_tuned_values_is_refused_in_a_sentence(built, tmp_path):
    shutil.copytree(built, tmp_path / "copy")
    (tmp_path / "copy/results/tuned/twin.yaml").write_text("<<<<<<< HEAD\na: 1\n=======\na: 2\n>>>>>>> other\n")
    done = make("tables", tmp_path / "copy", expect=1)
    assert re.fullmatch(r"error: results/tuned/twin\.yaml cannot be read \(.*\): mend it, or .*\n", done.stderr)


def test_an_experiment_without_runs_has_no_figures(built, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(built, root)
    (root / "results/records/twin.jsonl").unlink()
    make("tables", root)
    make("report", root)
    assert not list((root / "results/figures").iterdir())
    assert not list((root / "results/tables").glob("*controls.*"))
    assert "What was not run" in (root / "site/report.html").read_text()
    assert "figures/" not in (root / "results/tables/twin.md").read_text()


class Links(HTMLParser):
    """What a page refers to, the ids it has, and whether its tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.found, self.ids, self.open = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br", "use", "path"):
            self.open.append(tag)
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        self.found += [(tag, key, attrs[key]) for key in ("href", "src", "xlink:href", "style") if attrs.get(key)]

    def handle_endtag(self, tag):
        if tag not in ("path", "use"):
            assert self.open.pop() == tag, self.getpos()


def test_the_report_is_one_file_without_scripts_or_requests(built):
    text = (built / "site/report.html").read_text()
    page = Links(text)
    assert page.open == []
    assert not re.search(r"<script|<link|<img|@import|url\((?!#)", text)
    for tag, key, target in page.found:
        if tag == "a" and target.startswith("#"):
            assert target[1:] in page.ids
        elif tag == "a" and not target.startswith("https://"):
            assert (built / "site" / target).exists(), target
        elif key == "xlink:href":
            assert target[1:] in page.ids, (key, target)
    assert text.count("<svg role=") == 6  # the members', the claim's, the experiment's two, and one a written page
    assert all(
        f'<section id="{place}"><h2>{title}</h2>' in text
        for place, title in (("answers", "Answers"), ("choosing", "Which"))
    )
    assert "python train.py -m experiment=twin cell=deit.fogzo seed=11" in text
    assert "FOGZO beats the straight-through estimator (STE)" in text.partition("<p><strong>")[2][:60]
    assert len(page.ids - {None}) == len(re.findall(r'\bid="', text))  # none twice, though figures have their own
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_the_report_has_claim_verdict_status_and_the_place_of_every_number(built):
    text = (built / "site/report.html").read_text()
    assert "FOGZO is better than STE at the same number of steps." in text
    assert '<span class="badge good">scaled-down twin: same direction</span>' in text
    for line in range(1, 41):
        assert f"results/records/twin.jsonl, line {line}<" in text


def test_figures_hold_text_as_text_and_one_colour_a_method(built):
    methods = parse(experiment(methods=dict.fromkeys(standard_methods()))).methods
    for name in ("twin.svg", "twin_differences.svg"):
        drawing = (built / "site/figures" / name).read_text()
        assert "FOGZO, n = 1</text>" in drawing
        assert colour(methods["fogzo"]) in drawing
    assert len({colour(methods[name]) for name in ("ste", "fogzo", "slope", "noisy_ste", "ste_longer", "nspsa_8")}) == 6


def test_settings_that_vary_a_number_have_a_figure_of_it(tmp_path):
    made = experiment(settings=("small", "middle", "large"))
    made["axes"] = [
        {"label": "ε over the STE's", "settings": {"small": 0.1, "middle": 1, "large": 10}},
        {"label": "n", "methods": {"fogzo": 1, "slope": 4}},
        {"label": "n", "methods": {"fogzo": 1, "slope": 4}, "metric": "train_loss"},
    ]
    write(tmp_path, made)
    (tmp_path / "README.md").write_text("![how sensitive](results/figures/twin_sensitivity.svg)\n")
    make("tables", tmp_path)
    drawing = (tmp_path / "results/figures/twin_sensitivity.svg").read_text()
    assert drawing.count(">training loss</text>") == 1
    assert all(f">{text}</text>" in drawing for text in ("ε over the STE's", "0.1", "10", "FOGZO, n = 1"))
    assert "twin_sensitivity.svg" in (tmp_path / "results/tables/twin.md").read_text()


@pytest.mark.slow
def test_500_records_take_less_than_20_seconds(tmp_path):
    for number in range(10):
        made = experiment(f"many{number}", settings=("deit", "resnet"), seeds=(11, 12, 13, 14, 15))
        write(tmp_path, made, rows=40)
    assert sum(file.read_text().count("\n") for file in (tmp_path / "results/records").iterdir()) == 500
    words = [sys.executable, "-W", "error", "scripts/make_tables.py", "--root", str(tmp_path)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, check=True)  # an interpreter of its own
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{seconds:.1f} s of CPU time")
    assert seconds < 20


def test_ten_lines_from_the_raw_records_give_the_same_numbers():
    table = list(csv.DictReader((ROOT / "results/tables/mlp_compute.csv").read_text().splitlines()))
    loss = {}
    for line in (ROOT / "results/records/mlp_compute.jsonl").read_text().splitlines():
        run = json.loads(line)["summary"]
        loss.setdefault(run["cell"], {})[run["seed"]] = run["train_loss"]
    for row in table:
        values = loss[row["cell"]]
        assert float(row["mean"]) == pytest.approx(statistics.fmean(values.values()), rel=1e-5)
        assert float(row["std"]) == pytest.approx(statistics.stdev(values.values()), rel=1e-5)
        if row["cell"] != "ste":
            better = statistics.fmean(loss["ste"][seed] - values[seed] for seed in values)
            assert float(row["difference"]) == pytest.approx(better, rel=1e-5)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]  # with tables between marks


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    """What `make tables` makes of our own records: (where, what it printed); read only."""
    root = tmp_path_factory.mktemp("rebuilt")
    for name in ("configs", "results"):
        ignore = shutil.ignore_patterns("runs", "figures", "tables")
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    (root / "docs").mkdir()
    for page in PAGES:
        shutil.copy(page, root / page.relative_to(ROOT))
    done = make("tables", root)
    return root, done.stdout


def test_what_is_committed_is_what_the_records_give(rebuilt):
    """... and every experiment file makes a page, whether it has runs or not."""
    root, printed = rebuilt
    names = {file.stem for file in (ROOT / "configs/experiment").glob("*.yaml")}
    for folder in ("results/tables", "results/figures"):
        made, committed = ({file.name for file in (top / folder).iterdir()} for top in (root, ROOT))
        assert made == committed, f"run `make tables`, and remove what it does not make: {sorted(made ^ committed)}"
    for committed in [*PAGES, *(ROOT / "results/tables").iterdir()]:
        path = committed.relative_to(ROOT)
        assert committed.read_bytes() == (root / path).read_bytes(), (
            f"run `make tables`: {path} is not what the records give"
        )
    assert {line.split("/")[-1] for line in printed.splitlines()} <= {f"{n}.md" for n in names}


@pytest.mark.slow
def test_tables_for_latex_need_no_fonts_but_its_own(rebuilt):
    make("report", rebuilt[0])
    files = list((rebuilt[0] / "site/tables").glob("*.tex"))
    assert len(files) > 5
    for file in files:
        for line in file.read_text().splitlines():
            assert line.startswith("%") or line.isascii(), f"{file.name}: {line}"
