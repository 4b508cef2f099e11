"""One table as Markdown, LaTeX, CSV and HTML, and prose as HTML."""

from pathlib import Path

from fogzo.evidence.compare import paired_difference
from fogzo.evidence.numbers import Effect
from fogzo.evidence.render import latex, markdown, prose, to_csv, to_html
from fogzo.evidence.tables import (
    Column,
    Table,
    commands,
    cost,
    link,
    on_page,
    quantity,
    shown,
    verdict,
    whole_effect,
)  # fmt: skip
from fogzo.evidence.words import Word
from fogzo.runs.schema import METRICS

PPL = METRICS["perplexity"]
WORSE = paired_difference({1: 11.0, 2: 12.5, 3: 13.0}, {1: 1.0, 2: 2.0, 3: 3.0}, higher_is_better=False)


def row(second="x | y"):
    return [
        (Column("a_b", "a"), shown("name", second)),
        (Column("50 %", "v_"), quantity([1.0, 2.0], 1, " %", counted=True)),
        (Column(None, "seed"), 3),
        (Column("p"), whole_effect(WORSE, PPL)),
        (Column("cost", "cost"), cost(1234567.0, 2.0)),
        (Column("β", "status"), verdict(Word.WORSE, before="twin: ", after="!")),
        (Column("run", "command"), commands(["make a", "make b"])),
    ]


TABLE = Table([row(), row("ε̄")], ["a *note*"], blocks=[0, 1])


def test_a_table_in_markdown_has_what_pages_show():
    lines = markdown(TABLE).splitlines()
    assert lines[0] == "| a_b | 50 % | p | cost | β | run |"
    assert lines[2] == (
        r"| x \| y | 1.5 ± 0.7 % (2) | 10.17 ppl worse [9.45 to 10.88 worse]; p = 0.250 (least of 3 pairs) "
        "| 1,234,567 (2×) | twin: worse! | `make a`, then `make b` |"
    )
    assert lines[-1] == "a *note*"


def test_a_table_in_csv_has_every_number_in_full_and_what_has_a_name_there():
    header, first, _ = to_csv(TABLE).splitlines()
    assert header == "a,v_mean,v_std,v_n,seed,cost,status,command"
    assert first == "name,1.5,0.707107,2,3,1.23457e+06,twin: worse!,make a && make b"


def test_a_missing_number_is_a_dash_on_pages_and_empty_in_csv():
    missing = Table([[(Column("x", "x"), None), (Column("y", "y_"), quantity([], 2)), (Column("z", "z"), cost(None))]])
    assert missing.texts() == [["–", "–", "–"]]
    assert to_csv(missing) == "x,y_mean,y_std,y_n,z\n,,,0,\n"


def test_latex_escapes_what_it_takes_for_commands():
    assert latex(TABLE).splitlines()[2:] == [
        r"\begin{tabular}{llllll}",
        r"\toprule",
        r"a\_b & 50 \% & p & cost & $\beta$ & run \\",
        r"\midrule",
        r"x \textbar{} y & 1.5 $\pm$ 0.7 \% (2) & 10.17 ppl worse [9.45 to 10.88 worse]; p = 0.250 (least of 3 pairs) "
        r"& 1,234,567 (2$\times$) & twin: worse! & make a, then make b \\",
        r"\midrule",
        latex(TABLE).splitlines()[8],
        r"\bottomrule",
        r"\end{tabular}",
        "% a *note*",
    ]


def test_html_colours_words_by_what_they_are():
    text = to_html(TABLE)
    assert '<span class="badge bad">twin: worse</span>!' in text
    assert "<code>make a</code>, then <code>make b</code>" in text
    assert text.count("<tr class=block>") == 2
    assert text.endswith("<p>a <em>note</em></p>\n")
    entries = [link("A & B", "#a"), verdict(Word.CONFIRMED_IN_PART)]
    assert (
        '<td><a href="#a">A &amp; B</a></td><td><span class="badge good part">confirmed in part</span></td>'
        in to_html(Table([on_page(dict(zip("xy", entries, strict=True)))]))
    )


def test_differences_carry_their_direction_in_words():
    (texts,) = Table([on_page({"a": whole_effect(WORSE, PPL)})]).texts()
    assert texts == ["10.17 ppl worse [9.45 to 10.88 worse]; p = 0.250 (least of 3 pairs)"]
    both = Effect([-92.818, 13.11], PPL, (-153.43, 53.67))
    assert both.directed() == "92.82 ppl worse to 13.11 ppl better [153.43 worse to 53.67 better]"
    assert both.signed() == "−92.82 to +13.11 [−153.43, +53.67]"


def test_prose_in_markdown_becomes_html():
    text = (
        "# A <b>\n\nOne *two*\n**three** `a*b*`\n\n- x\n  y\n- [z](../p.md)\n\n1. n\n\n| a | b |\n|---|---|\n"
        "| 1 | 2 \\| 3 |\n\n```\n# code\n\n| x |\n```\n\n![alt](f.svg)\n<!-- gone -->\n"
    )
    draw = lambda path, alt: f"<svg>{path} {alt}</svg>"  # noqa: E731
    made = prose(text, Path("docs"), draw)
    for part in (
        "<h2>A &lt;b&gt;</h2>",
        "<p>One <em>two</em>\n<strong>three</strong> <code>a*b*</code></p>",
        '<a href="../p.md">z</a>',
        "<ol>\n<li>n</li>",
        '<div class="scroll" tabindex="0"><table>',
        "<td>1</td>\n<td>2 | 3</td>",
        "<pre><code># code\n\n| x |\n</code></pre>",
        "\n<svg>docs/f.svg alt</svg>\n",
    ):
        assert part in made
    assert "gone" not in made
