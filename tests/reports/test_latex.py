"""LaTeX that an author can put in: complete, and on every page that it is meant for."""

from __future__ import annotations

import itertools
import random
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from heima import config
from reports import tables
from reports.tables import floats, layout
from tests import fabricated

ARTICLE = r"\documentclass{article}"
CONFERENCE = (
    r"\documentclass[twocolumn]{article}\setlength{\textwidth}{6.75in}"
    r"\setlength{\textheight}{9in}\setlength{\columnsep}{0.25in}"
    r"\setlength{\oddsidemargin}{-0.125in}\setlength{\topmargin}{-0.5in}"
)
SETTINGS = {
    "article": (ARTICLE, lambda name: True),
    "pages of a conference": (CONFERENCE, lambda name: not name.endswith("-column.tex")),
    "columns of a conference": (CONFERENCE, lambda name: name.endswith("-column.tex")),
}
"""Setting -> the beginning of a document, and the files that belong there."""


def files_of(built: dict[str, tables.Table], params: config.Params, kept=()) -> dict[str, str]:
    appendix = {f"{name}-full.tex": tables.latex(table) for name, table in built.items()}
    return appendix | tables.compact_files(built, params, kept)


@pytest.fixture(scope="module")
def files(built, params):
    return files_of(built, params)


@pytest.fixture(scope="module")
def paper_files(paper_built, paper_results):
    return files_of(paper_built, paper_results.params)


@pytest.fixture(scope="module")
def beside_files(beside_built, beside):
    """With what other profiles have kept."""
    return files_of(beside_built, beside.params, beside.kept)


def compiled(folder, files: dict[str, str], beginning: str) -> str:
    """What the engine says of a document with these files."""
    compiler = shutil.which("pdflatex")
    if not compiler:
        pytest.skip("no LaTeX engine is installed (apt-get install texlive-latex-recommended)")
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    body = "\n".join(f"\\input{{{name}}}\\clearpage" for name in files)
    (folder / "document.tex").write_text(
        f"{beginning}\\usepackage{{booktabs}}\\begin{{document}}\n{body}\n\\end{{document}}",
        encoding="utf-8",
    )
    done = subprocess.run(
        [compiler, "-interaction=nonstopmode", "-halt-on-error", "document.tex"],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


def faults(said: str) -> list[str]:
    return re.findall(r"(?:Overfull|Float too large|Too many unprocessed).*", said)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("of", ["files", "paper_files", "beside_files"])
def test_every_table_fits_wherever_it_belongs(request, tmp_path, setting, of):
    beginning, belongs = SETTINGS[setting]
    chosen = {name: t for name, t in request.getfixturevalue(of).items() if belongs(name)}
    assert len(chosen) >= 10
    assert faults(compiled(tmp_path, chosen, beginning)) == []


def test_a_fault_would_be_seen(tmp_path):
    """The document above says so where a table runs over a margin or a page."""
    wide = "\\begin{table*}[p]" + "x" * 300 + "\\end{table*}"
    high = "\\begin{table*}[p]" + "x\\par " * 99 + "\\end{table*}"
    said = compiled(tmp_path, {"wide.tex": wide, "high.tex": high}, ARTICLE)
    assert {fault.partition(" ")[0] for fault in faults(said)} == {"Overfull", "Float"}


def awkward() -> tables.Table:
    """Long names, wide numbers, many columns, many rows, and texts that LaTeX could mistake."""
    draw = random.Random(5)
    columns = {f"a_very_long_column_{n}_of_many_%&": 3 for n in range(9)} | {"short": 0}
    rows = tuple(f"variant-with-a-{'very-' * (n % 9)}long-name-{n}" for n in range(90))
    entries: dict[tuple[str, str], tables.Entry | tables.Label] = {}
    for row in rows:
        for column in columns:
            value = draw.uniform(-99999, 99999)
            entries[row, column] = tables.Entry(
                value, "f", value - 10, value + 10, 99999, 3, sd=draw.uniform(0, 999)
            )
        entries[row, "short"] = tables.Label(draw.choice(["#1 {x} ~^\\", "none " * 30]), "f")
    panel = tables.Panel("A_title % of &", "row_&", rows, columns, entries)
    caption = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:none|version:2.5.1 " * 9
    return tables.Table("awkward", (tables.Block("here", "Title_" * 9, caption, (panel,)),))


@pytest.mark.parametrize("beginning", [ARTICLE, CONFERENCE])
def test_awkward_contents_fit_too(tmp_path, beginning):
    files = {"awkward.tex": tables.latex(awkward())}
    assert faults(compiled(tmp_path, files, beginning)) == []


def test_widths_are_not_below_those_of_the_engine(tmp_path):
    draw = random.Random(3)
    letters = [chr(code) for code in range(32, 127)] + list("±×–−")
    texts = ["".join(draw.choices(letters, k=12)).strip() or "x" for _ in range(40)]
    boxes = "".join(
        f"\\setbox0=\\hbox{{\\{size} {layout.escape(text)}}}\\typeout{{WIDTH \\the\\wd0}}\n"
        for size in ("scriptsize", "tiny")
        for text in texts
    )
    said = compiled(tmp_path, {"boxes.tex": boxes + "x"}, ARTICLE)
    found = [float(width) for width in re.findall(r"WIDTH ([\d.]+)pt", said)]
    assert len(found) == 80
    for text, width in zip(texts, found[:40], strict=True):
        assert width <= layout.width(text) <= 1.5 * width + 5, text
    for text, width in zip(texts, found[40:], strict=True):
        assert width <= layout.width(text, "tiny"), text


def test_latex_is_complete(files, paper_files):
    for name, text in {**files, **paper_files}.items():
        assert text.count(r"\begin{table") == text.count(r"\end{table") >= 1, name
        assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}"), name
        assert text.count(r"\toprule") == text.count(r"\bottomrule"), name
        assert text.count(r"\toprule") <= text.count(r"\midrule"), name
        assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}"), name
        assert text.count(r"\ifdim") == text.count(r"\else") == text.count(r"\fi"), name
        for hiding in (r"\makebox", r"\resizebox", r"\scalebox", r"\hspace{-", r"\hss"):
            assert hiding not in text, name
        assert r"\label{tab:heima-" in text
        assert text.isascii(), name


def test_both_forms_of_a_table_say_the_same(files):
    """All rows and all cells, whatever grids they stand in."""
    compacts = [name for name in files if name.endswith("-column.tex")]
    assert len(compacts) >= 10
    for name in compacts:
        narrow = files[name]
        wide = files[name.replace("-column", "")].partition("\\else")
        wide = wide[2] or wide[0]
        both = [
            {label: sorted(cells) for label, cells in rows_of(unboxed(text)).items()}
            for text in (narrow, wide)
        ]
        assert both[0] == both[1], name
        assert r"\begin{table}" in narrow and r"\begin{table*}" not in narrow


def unboxed(text: str) -> str:
    """Texts in one line, wherever a form breaks them."""
    one_line = re.sub(r"\\parbox\[t\]\{[\d.]+pt\}\{\\raggedright (.*?)\\strut\}", r"\1", text)
    return one_line.replace("\\allowbreak{}", "")


def caption_of(text: str) -> str:
    return re.search(r"\\caption\{(.*?)\}\\label", text, re.DOTALL)[1]


def test_captions_of_compact_tables_have_at_most_fifty_words(files, paper_files, beside_files):
    for name, text in [*files.items(), *paper_files.items(), *beside_files.items()]:
        if not name.endswith("-full.tex"):
            assert 5 <= len(caption_of(text).split()) <= 50, name


def rows_of(text: str) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    for line in text.splitlines():
        if " & " in line:
            label, *cells = line.removesuffix(r" \\").split(" & ")
            rows.setdefault(label, []).extend(cells)
    return rows


def test_a_compact_table_has_a_row_a_model_and_the_best_in_bold(files, built):
    text = files["benchmarks-lmms.tex"].partition("\\else")[2]
    rows = rows_of(text)
    assert rows["model"][:3] == ["MMStar", "MMBench", "MM-Vet"]
    assert rows["model"][-1] == "Mean"
    panel = built["benchmarks"].blocks[0].panels[0]
    tokens = next(p for p in built["benchmarks"].blocks[0].panels if p.title.startswith("Decoded"))
    assert len(rows) == len(panel.rows) + 1, "and the heads"
    for place, column in enumerate(panel.digits):
        shown = {row: round(panel.entries[row, column].value, 1) for row in panel.rows}
        best = max(value for row, value in shown.items() if row != "chance")
        bold = {label for label, cells in rows.items() if cells[place].startswith("\\textbf")}
        assert len(bold) == sum(value == best for row, value in shown.items() if row != "chance")
    heima = panel.entries["heima", "mmstar"].value
    count = tokens.entries["heima", "mmstar"].value
    shown = re.sub(r"\\textbf|[{}]", "", rows["Heima"][0])
    assert shown == f"{heima:.1f} ({count:.0f})"
    assert rows["chance"][0] == "25.0", "chance decodes nothing, and is never the best"


def test_fastest_is_best(files):
    rows = rows_of(files["latency.tex"].partition("\\else")[2] or files["latency.tex"])
    columns = list(zip(*(cells for label, cells in rows.items() if label != "model"), strict=True))
    for column in columns:
        times = [float(re.sub(r"[^\d.].*", "", re.sub(r"\\textbf\{", "", c))) for c in column]
        (bold,) = {time for time, c in zip(times, column, strict=True) if "textbf" in c}
        assert bold == min(times)


def test_equal_values_are_all_the_best():
    values = floats.Group(
        {
            "a": [floats.Value("1.0", 1.0, " (4)")],
            "b": [floats.Value("1.0", 1.0, " (9)")],
            "c": [floats.Value("9.0")],
        }
    )
    one = floats.Compact("x", "c", "model", ("n",), (values,))
    text = floats.latex(one, floats.FORMS["-column"])
    assert text.count("\\textbf") == 2 and "\\textbf{1.0} (9)" in text


def test_what_is_the_same_everywhere_becomes_a_sentence():
    def panel(value, **details) -> tables.Panel:
        columns = dict.fromkeys(("x", "y", "z"), 1)
        entries = {("a", c): tables.Entry(value, "f", value, value, 9, 0) for c in columns}
        entries |= {("b", c): tables.Entry(n, "f", n, n + 1, 9, 0) for n, c in enumerate(columns)}
        return tables.Panel("Tokens", "row", ("a", "b"), columns, entries)

    def shown(one: tables.Panel) -> str:
        return tables.latex(tables.Table("t", (tables.Block("o", "T", "c", (one,)),)))

    text = shown(panel(13.0))
    assert "The same in every column: a: 13.0." in text and "\na &" not in text
    assert "n = 9 in every cell." in text
    whole = replace(panel(13.0), rows=("a",))
    assert "Tokens: 13.0 in every cell." in shown(whole) and "tabular" not in shown(whole)
    entries = {("a", c): tables.Label(f"0 of {n}", "f") for n, c in enumerate("xyz", 300)}
    failed = replace(whole, title="Failed answers of n", entries=entries)
    assert "Failed answers of n: none in every cell." in shown(failed)
    mixed = replace(panel(13.0), rows=("a", "b", "c"), digits={"x": 1, "y": 1, "verdict": 0})
    for row, number in zip("abc", range(3), strict=True):
        mixed.entries[row, "x"] = mixed.entries[row, "y"] = tables.Entry(number, "f")
        mixed.entries[row, "verdict"] = tables.Label("undecided", "f")
    assert "verdict: undecided in every row." in shown(mixed) and "& undecided" not in shown(mixed)
    spread = {key: replace(e, sd=0.6) for key, e in whole.entries.items()}
    assert "tabular" in shown(replace(whole, entries=spread)), "training seeds differ"


def test_numbers_of_the_appendix_have_intervals_counts_and_short_p(files):
    text = files["benchmarks-full.tex"]
    assert re.search(r"\{\\tiny \[\d+\.\d, \d+\.\d\]\}", text)
    assert "\nn & " in text
    assert "p <.001" not in text
    found = re.findall(r"p (?:=|\\textless\{\}|0)?[.\d]+", files["ablation-full.tex"])
    assert all(not one.startswith("p 0") for one in found)


def test_latex_escapes_values_and_both_indexes():
    panel = tables.Panel(
        "50 % & more_",
        "row",
        ("a_b & c",),
        {"x_1 %": 1, "text": 0},
        {
            ("a_b & c", "x_1 %"): tables.Entry(-1.25, "f", -2.0, -0.01, 4, 0),
            ("a_b & c", "text"): tables.Label("{5 %} ~ #1 $", "f"),
        },
    )
    block = tables.Block("here", "A_title", "p < 5 %, \\ and {braces} a|b", (panel,))
    found = tables.latex(tables.Table("t", (block,)))
    assert r"a\_b \& c" in found and r"x\_1 \%" in found
    assert r"\{5 \%\}" in found and r"\#1 \$" in found
    assert r"50 \% \& more\_" in found and r"A\_title." in found and r"p \textless{} 5 \%" in found
    assert r"\textbackslash{} and \{braces\} a\textbar{}\allowbreak{}b" in found
    # What rounds to nothing has no sign.
    assert "$-$1.2" in found and "[$-$2.0, 0.0]" in found


def test_tables_of_a_family_without_published_values(tmp_path):
    text = fabricated.toy_text().replace("family: toy-mllama", "family: toy-idefics3")
    params = fabricated.write(tmp_path, params_text=text)
    built = tables.build(tmp_path, params)
    for name in ("tokens_per_stage", "retention_ratio", "reported"):
        assert "published nothing" in tables.markdown(built[name])
    published = {name for name in tables.compact_files(built, params) if "published" in name}
    assert published == {"families-published.tex", "families-published-column.tex"}
    assert faults(compiled(tmp_path, files_of(built, params), ARTICLE)) == []


def test_columns_are_shared_out_in_as_few_grids_as_can_be_and_evenly():
    """Against all ways to cut them."""
    draw = random.Random(7)
    for _ in range(200):
        needs = [draw.uniform(1, 9) for _ in range(draw.randint(1, 8))]
        room = draw.uniform(max(needs), 25)
        found = layout._shared_out(needs, room)
        assert [place for part in found for place in part] == list(range(len(needs)))
        widths = [sum(needs[place] for place in part) for part in found]
        assert max(widths) <= room
        best = None
        for cuts in itertools.product((False, True), repeat=len(needs) - 1):
            sums, total = [], 0.0
            for need, cut in zip(needs, (*cuts, True), strict=True):
                total += need
                if cut:
                    sums.append(total)
                    total = 0.0
            if max(sums) <= room:
                best = min(best or (99, 0.0), (len(sums), max(sums)))
        assert best is not None
        assert (len(widths), max(widths)) == pytest.approx(best)


HOSTILE = [
    "\\input{/etc/passwd}", "\\write18{rm -rf .}", "}\\end{table}", "a & b \\\\ c", "$x^2$",
    "% gone", "#1", "~^_{}", "\\", "{", "}", "<b>|</b>", "\\\\hline", "^^5cinput", "$$", "a\n\nb",
    "\\par", "é ∑",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_categories_cannot_break_out_of_a_table(name):
    """Wherever a data set's own words may stand, LaTeX and Markdown keep their structure."""

    def built(word):
        panel = tables.Panel(
            word,
            "row",
            (word, "other"),
            {word: 1, "text": 0},
            {
                (row, column): tables.Entry(1.0, "f", 0.5, 1.5, 4, 0)
                if column == word
                else tables.Label(word, "f")
                for row in (word, "other")
                for column in (word, "text")
            },
        )
        return tables.Table("t", (tables.Block("here", word, f"About {word}.", (panel,)),))

    def structure(text):
        """Commands, groups, columns and line ends, without what escaping writes for a character."""
        text = re.sub(
            r"\\(?:allowbreak|space|textbackslash|textascii\w+|textless|textgreater|textbar)\b(?:\{\}|\s?)",
            "",
            text,
        )
        return re.findall(
            r"\\[A-Za-z]+|\\\\|(?<!\\)[{}&%$#~^_]|\n\s*\n", re.sub(r"\\[{}&%$#_]", "", text)
        )

    assert structure(tables.latex(built(name))) == structure(tables.latex(built("plain")))

    def grid(text):
        return [
            len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line[:1] == "|"
        ]

    assert grid(tables.markdown(built(name))) == grid(tables.markdown(built("plain")))


def test_kept_results_have_forms_of_their_own(files, beside_files):
    """A float a profile and protocol, none in place of another; families are compared apart."""
    more = set(beside_files) - set(files)
    assert {name for name in more if not name.endswith("-column.tex")} == {
        *(
            f"{series}-toy-thinking-{protocol}.tex"
            for series in ("tokens_per_stage", "retention_ratio")
            for protocol in ("lmms", "vlmevalkit")
        ),
        "families-lmms.tex",
        "families-vlmevalkit.tex",
    }
    text = beside_files["families-lmms-column.tex"]
    assert [text.index(f"{{@{{}}l}}{{{name}}}") for name in ("toy-mllama", "toy-llava-next")]
    assert "toy-thinking profile" in caption_of(
        beside_files["tokens_per_stage-toy-thinking-lmms.tex"]
    )


def test_letters_beyond_ascii_compile_and_are_not_lost(tmp_path):
    """Whatever the fonts lack is named by its number."""
    text = "naïve “quoted” — it’s 5 °C → ∑ 你好 😀 ﬁ İ ǆ"
    shown = layout.escape(text)
    assert shown.isascii() and "na\\\"ive ``quoted'' --- it's" in shown
    assert "[U+2192]" in shown and "[U+1F600]" in shown and "[U+4F60]" in shown
    panel = tables.Panel(
        text, "row", ("a",), {"text": 0}, {("a", "text"): tables.Label(text * 3 + "x" * 90, "f")}
    )
    table = tables.Table("t", (tables.Block("here", text, text, (panel,)),))
    assert faults(compiled(tmp_path, {"t.tex": tables.latex(table)}, ARTICLE)) == []


def test_one_interpreter_for_all_stands_beside_one_for_each(files, built, params):
    text = files["interpreters-shared.tex"]
    own, shared = built["interpreters"].blocks[0].panels, "Other interpreters: own state"
    [others] = [panel for panel in own if panel.title == shared]
    lines = [line for line in text.splitlines() if re.match("one (each|for all) &", line)]
    assert len(lines) % (2 * len(params.sections)) == 0
    for place, section in enumerate(params.sections):
        [given] = [panel for panel in own if panel.title == f"{section}: state given"]
        for line, value in (
            (lines[2 * place], given.entries["own", "bleu4"].value),
            (lines[2 * place + 1], others.entries[f"shared-{section}", "bleu4"].value),
        ):
            first = re.sub(r"\\textbf|[{}]", "", line.split("&")[1]).strip()
            assert first == f"{value:.1f}"
