"""The page: whole, offline, every number with its source, and hostile text as text."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser

import networkx as nx
import pytest
import yaml
from PIL import Image

from heima import config
from heima.results.cells import write_metrics
from heima.results.files import read_jsonl, write_jsonl
from reports import page, tables
from reports.finished import stage_names
from reports.page import cells, costs, findings, images, pipeline, samples
from reports.tables.model import Entry
from stages import page as stage
from stages import resolve
from tests import fabricated_page
from tests.conftest import ROOT
from tests.fabricated_page import HOSTILE
from tests.reports import chromium
from tests.reports.conftest import COMMIT

VOID = {"meta", "link", "img", "input", "br", "hr", "rect", "path"}


class Read(HTMLParser):
    """The elements of a page with their attributes, and the text of each script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.raw: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.raw.append((self.open[-1], data))
        else:
            self.words.append(data)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def text(finished, finished_params):
    return page.render(finished, finished_params, plan=fabricated_page.plan(), commit="abc123")


@pytest.fixture(scope="module")
def read(text):
    return Read(text)


@pytest.fixture(scope="module")
def data(read):
    [found] = [raw for kind, raw in read.raw if raw.startswith('{"cells"')]
    return json.loads(found)


@pytest.fixture(scope="module")
def built(finished, finished_params):
    return tables.build(finished, finished_params)


def test_the_page_is_whole_and_needs_nothing_beside_it(read):
    assert read.open == [], "every element is closed"
    for tag, attributes in read.elements:
        for name in ("src", "href", "action", "srcset", "poster", "data"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), (tag, attributes[name][:80])
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag


def test_names_in_the_page_are_distinct_and_links_lead_somewhere(read):
    names = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(names) == len(set(names)) > 300
    links = {a["href"] for tag, a in read.elements if tag == "a"}
    assert len(links) > 12
    assert {link.removeprefix("#") for link in links} <= set(names)


def test_no_script_runs_but_the_pages_own(read):
    [policy] = [
        attributes["content"]
        for tag, attributes in read.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    scripts = [raw for kind, raw in read.raw if kind == "script" and not raw.startswith('{"cells"')]
    styles = [raw for kind, raw in read.raw if kind == "style"]
    for kind, raw in (("script", scripts), ("style", styles)):
        digest = base64.b64encode(hashlib.sha256("".join(raw).encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_hostile_text_stays_text(text, read, data):
    assert HOSTILE not in text and "<script>document" not in text and "<img src=x" not in text
    assert HOSTILE in data["texts"]
    assert HOSTILE in {question["question"] for question in data["questions"]}
    assert len([tag for tag, _ in read.elements if tag == "script"]) == 2


def test_hostile_names_stay_text_in_the_tables(finished, finished_params, monkeypatch):
    """Captions and names are ours; should one come from elsewhere, it is escaped, too."""
    built = tables.build(finished, finished_params)
    first = built["latency"].blocks[0]
    evil = tables.Table(HOSTILE, (tables.Block(HOSTILE, HOSTILE, HOSTILE, first.panels[:1]),))
    monkeypatch.setattr(page.tables, "build", lambda *_: {**built, HOSTILE: evil})
    text = page.render(finished, finished_params, plan=fabricated_page.plan(), commit=HOSTILE)
    assert HOSTILE not in text and "<img src=x" not in text


def test_every_cell_is_there_with_its_number_and_its_source(built, read, data, finished_params):
    buttons = {a["id"] for tag, a in read.elements if tag == "button" and "id" in a}
    assert buttons == data["cells"].keys()
    entries = [
        (table.name, block_place, panel_place, row, column, panel.entries[row, column])
        for table in built.values()
        for block_place, block in enumerate(table.blocks)
        for panel_place, panel in enumerate(block.panels)
        for row in panel.rows
        for column in panel.digits
        if (row, column) in panel.entries
    ]
    assert len(entries) == len(data["cells"])
    for (name, block, panel, *_, entry), (own, detail) in zip(
        entries, data["cells"].items(), strict=True
    ):
        assert own.startswith(f"{name}-{block}-{panel}-")
        assert data["sources"][detail["s"]]["file"] == entry.source
        if isinstance(entry, Entry):
            assert detail["v"] == pytest.approx(entry.value, rel=1e-5)
            assert detail.get("n") == entry.n and detail.get("failed") == entry.n_failed


def test_commands_name_stages_that_there_are(data, finished, finished_params):
    raw = yaml.safe_load((finished / "dvc.yaml").read_text(encoding="utf-8"))
    values = finished_params.model_dump(mode="json")
    values |= yaml.safe_load((finished / "runs.yaml").read_text(encoding="utf-8"))
    names = stage_names(raw, values)
    seen = set()
    for source in data["sources"]:
        words = source["command"].split()
        if words[0] == "git":
            assert source["file"].startswith("reports/published/") and not source["code"]
            continue
        assert words[:2] == ["dvc", "repro"] and set(words[2:]) <= set(names)
        seen |= set(words[2:])
        if source["file"].startswith(("metrics/", "scores/")):
            assert source["code"]
    assert {"score@heima", "similarity@caption", "latency"} <= seen


def test_cells_lead_to_their_samples(data, finished_params):
    addresses = {detail["at"] for detail in data["cells"].values() if "at" in detail}
    assert "questions?protocol=lmms&a=heima&benchmark=ai2d" in addresses
    assert "turns?reconstruction=caption&control=shuffled" in addresses
    made = ("metrics/score/", "metrics/similarity/", "scores/", "reconstructions/")
    for name, detail in data["cells"].items():
        if data["sources"][detail["s"]]["file"].startswith(made):
            assert "at" in detail, name
    for address in addresses:
        wanted = dict(part.split("=") for part in address.partition("?")[2].split("&"))
        assert wanted.get("a", "heima") in finished_params.variants
        assert wanted.get("benchmark", "ai2d") in finished_params.benchmarks
        assert wanted.get("reconstruction", "caption") in finished_params.reconstructions


def test_five_sentences_whose_numbers_are_those_of_their_cells(finished, finished_params, built):
    found = cells.cells_of(finished, finished_params, built)
    told = findings.sentences(finished_params, found)
    assert len(told) == 5
    places = {own: place for place, own in found.ids.items()}
    linked = [part for sentence in told for part in sentence if part.cell]
    assert len(linked) > 15
    for part in linked:
        entry = found.entries[places[part.cell]]
        if isinstance(entry, Entry):
            digits = len(part.text.split()[0].partition(".")[2])
            assert float(part.text.split()[0]) == pytest.approx(round(entry.value, digits))
        else:
            assert part.text == entry.text
    for sentence in told:
        assert "".join(part.text for part in sentence).endswith(".")


def test_a_sentence_about_what_is_not_there_is_left_out(finished, finished_params, built):
    variants = {k: v for k, v in finished_params.variants.items() if k != "answer-only"}
    latency = finished_params.latency.model_copy(update={"cases": {}})
    fewer = finished_params.model_copy(update={"variants": variants, "latency": latency})
    told = findings.sentences(fewer, cells.cells_of(finished, finished_params, built))
    assert len(told) == 3
    assert not any("answer-only" in part.text for sentence in told for part in sentence)


def test_samples_are_spread_evenly_and_as_many_as_asked(finished, finished_params, data):
    most = finished_params.page.samples
    assert most == 20 and len(data["questions"]) == 20 * len(finished_params.benchmarks)
    few = finished_params.model_copy(update={"page": config.Page(samples=3)})
    found = samples.read(finished, few)
    assert len(found.questions) == 3 * len(few.benchmarks) and len(found.turns) == 3
    assert [one["doc"] for one in found.questions[:3]] == [0, 6, 13]
    assert found.of["mmstar"] == 20


def test_an_answer_stands_with_its_question_tokens_and_scores(finished, finished_params, data):
    rows = {
        (row["training_seed"], row["protocol"], row["benchmark"], row["doc_id"]): row
        for row in read_jsonl(finished / "scores" / "heima.jsonl")
        if row["seed"] == 42
    }
    for question in data["questions"]:
        for protocol in finished_params.protocols:
            text, decoded, _, scored, failed = question["answers"][protocol]["heima"]
            own = [
                rows[seed, protocol, question["benchmark"], question["doc"]]
                for seed in (42, 43, 44)
            ]
            assert scored == [row["score"] for row in own]
            assert (decoded, bool(failed)) == (own[0]["decoded"], own[0]["failed"])
            said = data["texts"][text]
            assert said == HOSTILE if question["doc"] == 0 else said.endswith("of heima")
    turn = data["turns"][1]
    assert turn["rebuilt"]["caption"]["zero"][1:] == [4.25, 3]
    assert turn["rebuilt"]["caption"]["noise"][2] is None, "the judge does not see it"
    assert data["texts"][turn["rebuilt"]["shared-caption"]["mean"][0]] == "from mean"


def test_answers_about_other_images_are_refused(damaged, finished_params):
    path = damaged / "scores" / "base.jsonl"
    rows = read_jsonl(path)
    rows[0]["image"] = "another"
    write_jsonl(path, rows)
    with pytest.raises(page.PageError, match=r"scores/base\.jsonl: mmstar \(lmms\) number 0"):
        samples.read(damaged, finished_params)


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("predictions/heima/42/lmms/42/ai2d.jsonl", "run `dvc repro predict@heima`"),
        ("scores/base.jsonl", "run `dvc repro score@base`"),
        ("reconstructions/caption/42.jsonl", "run `dvc repro reconstruct@caption-42`"),
        ("judgements/caption/42.jsonl", "run `dvc repro judge`"),
    ],
)
def test_what_samples_lack_is_named(damaged, finished_params, lost, named):
    (damaged / lost).unlink()
    with pytest.raises(page.PageError, match=re.escape(named)):
        samples.read(damaged, finished_params)


def test_a_missing_figure_is_named(damaged, finished_params):
    (damaged / "reports/toy/figures/loss-by-phase.svg").unlink()
    with pytest.raises(page.PageError, match=r"loss-by-phase\.svg is missing: run `dvc repro fig"):
        page.render(damaged, finished_params, plan=fabricated_page.plan(), commit="abc")


def test_a_page_that_nobody_can_send_is_refused(finished, finished_params, monkeypatch):
    monkeypatch.setattr(page, "MOST_BYTES", 500_000)
    with pytest.raises(page.PageError, match=r"at most 0: lower page\.samples = 20"):
        page.render(finished, finished_params, plan=fabricated_page.plan(), commit="abc")


def picture(mode: str, size: tuple[int, int], kind: str) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 80).convert(mode).save(file, kind)
    return file.getvalue()


def shown(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def test_images_are_small_once_each_and_faults_are_listed():
    found = images.Images()
    little, large = picture("RGB", (32, 32), "PNG"), picture("RGB", (1200, 600), "PNG")
    assert [found.place(one, "x") for one in (little, large, little)] == [0, 1, 0]
    assert found.addresses[0] == f"data:image/png;base64,{base64.b64encode(little).decode()}"
    assert shown(found.addresses[1]).size == (256, 128)
    for mode, kind in (("CMYK", "JPEG"), ("P", "GIF"), ("1", "TIFF"), ("RGBA", "WEBP")):
        place = found.place(picture(mode, (300, 100), kind), kind)
        assert place is not None and shown(found.addresses[place]).format == "JPEG"
    assert found.place(b"no image", "ai2d number 3") is None
    assert found.place(large[:900], "ai2d number 4") is None
    assert [line.partition(":")[0] for line in found.unreadable] == [
        "ai2d number 3",
        "ai2d number 4",
    ]


def test_costs_stand_beside_the_plan(finished, finished_params):
    names = ["resolve", "teach@text-cot", "teach@base", "judge"]
    rows = {
        one.stage: one for one in costs.compared(finished, names, fabricated_page.plan()["stages"])
    }
    assert (rows["teach"].runs, rows["teach"].planned) == (2, 1.0)
    assert rows["teach"].recorded == pytest.approx(90 / 3600)
    assert (rows["judge"].judge_calls, rows["judge"].usd) == (1200, 3.5)
    assert rows["judge"].planned is None and rows["resolve"].recorded is None
    assert (rows["all"].planned, rows["all"].judge_calls, rows["all"].runs) == (1.0, 1200, 4)


def test_costs_are_those_of_the_stages_alone(tmp_path):
    """Not of files that another profile or another seed has left there."""
    for name, seconds in (
        ("distill/p1/42", 3600.0), ("distill/p1/43", 7200.0), ("distill/p1-4/42", 1800.0),
        ("interpret/shared/question-only/42", 360.0), ("interpret/old/own/42", 9e9),
        ("teach/base", 720.0), ("teach/gone", 9e9),
    ):  # fmt: skip
        write_metrics(tmp_path / "metrics" / f"{name}.json", {}, {"seconds": seconds})
    names = [
        "distill@p1-42", "distill@p1-4-42", "interpret@shared-question-only-42", "teach@base",
        "predict@heima",
    ]  # fmt: skip
    rows = {one.stage: one.recorded for one in costs.compared(tmp_path, names, [])}
    assert rows["distill"] == pytest.approx(1.5) and rows["interpret"] == pytest.approx(0.1)
    assert rows["teach"] == pytest.approx(0.2) and rows["predict"] is None


def test_the_graph_is_that_of_dvc_yaml():
    """Whatever a stage reads of another, it stands below it, if only by a chain."""
    raw = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    drawn = pipeline.graph(raw)
    assert nx.is_directed_acyclic_graph(drawn) and list(drawn) == list(raw["stages"])
    chains = nx.transitive_closure_dag(drawn)
    for earlier, later in (
        ("resolve", "page"), ("prepare", "predict"), ("teach", "distill"), ("distill", "states"),
        ("states", "interpret"), ("interpret", "figures"), ("judge", "similarity"),
        ("score", "tables"), ("latency", "page"), ("figures", "page"), ("tables", "track"),
    ):  # fmt: skip
        assert chains.has_edge(earlier, later) and not chains.has_edge(later, earlier)
    assert not chains.has_edge("score", "similarity") and not chains.has_edge("latency", "score")
    found = pipeline.picture(raw, ["resolve", "teach@a", "teach@b"])
    places = {box.name: box for box in found.boxes}
    assert (places["teach"].runs, places["judge"].about) == (2, raw["stages"]["judge"]["desc"])
    assert all(y1 < y2 for _, y1, _, y2 in found.edges)
    spots = [(box.x, box.y) for box in found.boxes]
    assert len(spots) == len(set(spots)) and all(0 <= x <= found.width for x, _ in spots)


def test_the_stage_writes_the_page_and_says_where_it_is(damaged, monkeypatch, capsys):
    monkeypatch.chdir(damaged)
    resolve.write(config.load())
    monkeypatch.setattr(stage, "planned", fabricated_page.plan)
    monkeypatch.setattr("sys.argv", ["page", "--show"])
    with pytest.raises(SystemExit, match=r"index\.html does not exist yet: run `make repro`"):
        stage.main()
    monkeypatch.setattr("sys.argv", ["page"])
    stage.main()
    written = (damaged / "reports/toy/index.html").read_text(encoding="utf-8")
    assert "this is no git repository" in written
    monkeypatch.setattr("sys.argv", ["page", "--show"])
    stage.main()
    assert "reports/toy/index.html" in capsys.readouterr().out
    (damaged / "metrics/score/heima.json").unlink()
    monkeypatch.setattr("sys.argv", ["page"])
    with pytest.raises(SystemExit, match=r"no page was written:\nmetrics/score/heima"):
        stage.main()
    assert (damaged / "reports/toy/index.html").read_text(encoding="utf-8") == written


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if (program := chromium.installed()) is None:
        pytest.skip(f"no browser to look with: none of {', '.join(chromium.NAMES)} is installed")
    found = chromium.Chromium(program, tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def file(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(text, encoding="utf-8")
    return path


def follow(browser, place: str) -> None:
    browser.value(f"location.hash = {json.dumps(place)}")
    browser.listen(0.2)


def test_a_browser_says_nothing_and_asks_for_nothing(browser, file):
    """Hostile text in answers, questions and reconstructions is shown, and remains text."""
    browser.look(width=1200)
    browser.open(file)
    for place in (
        "questions?protocol=lmms&benchmark=mmvet&a=heima",
        "turns?reconstruction=caption",
    ):
        follow(browser, place)
        name = place.partition("?")[0].removesuffix("s")
        assert HOSTILE in browser.value(f"document.getElementById('{name}-list').textContent")
    asked = {one["request"]["url"][:5] for one in browser.named("Network.requestWillBeSent")}
    assert asked == {"file:", "data:"}
    for fault in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
        assert browser.named(fault) == []
    assert browser.value("document.title") == "Heima, toy profile: what came out"
    assert browser.value("document.querySelectorAll('img[src=x], script').length") == 2
    painted = browser.value("performance.getEntriesByType('paint')[0].startTime")
    assert painted < 2000 * 5, "2 s on an idle machine"


def test_any_cell_leads_to_its_samples_in_two_clicks(browser, file, finished_params, data):
    browser.look(width=1200)
    browser.open(file)
    wanted = "questions?protocol=lmms&a=answer-only&benchmark=ai2d"
    cell = next(own for own, detail in data["cells"].items() if detail.get("at") == wanted)
    browser.value(f"document.getElementById('{cell}').click()")
    told = browser.value("document.getElementById('cell').innerText")
    for part in ("metrics/score/answer-only.json", "dvc repro score@answer-only", "abc123"):
        assert part in told
    browser.value("document.querySelector('#cell .more a').click()")
    browser.listen(0.2)
    assert browser.value("document.getElementById('cell').open") is False
    titles = browser.value(
        "[...document.querySelectorAll('#question-list h3')].map(e => e.textContent)"
    )
    assert titles and all(title.startswith("ai2d ") for title in titles)
    assert (
        browser.value("document.getElementById('question-filters').elements.a.value")
        == "answer-only"
    )


def test_each_address_of_a_cell_shows_samples(browser, file, data):
    """Wherever a cell leads to, there is something to see, and it is what the cell is about."""
    browser.look(width=1200)
    browser.open(file)
    addresses = sorted({detail["at"] for detail in data["cells"].values() if "at" in detail})
    assert len(addresses) > 100
    for address in addresses:
        browser.value(f"location.hash = {json.dumps(address)}")
        kind, _, wanted = address.partition("?")
        form = f"document.getElementById('{kind.removesuffix('s')}-filters').elements"
        for part in wanted.split("&"):
            name, _, value = part.partition("=")
            if value == "own":
                continue  # It stands beside each control.
            for _ in range(50):
                # The page follows in an event of its own.
                if browser.value(f"{form}['{name}'].value") == value:
                    break
                browser.listen(0.02)
            assert browser.value(f"{form}['{name}'].value") == value, address
        shown = f"document.getElementById('{kind.removesuffix('s')}-list').children.length"
        assert browser.value(shown) > 0, address


@pytest.fixture(scope="module")
def beside_page(finished, finished_params, others, tmp_path_factory):
    """A page with what other profiles have kept."""
    root = shutil.copytree(finished, tmp_path_factory.mktemp("beside") / "copy")
    for _, record in others.values():
        shutil.copytree(record.parent, root / "reports" / "kept", dirs_exist_ok=True)
    text = page.render(root, finished_params, plan=fabricated_page.plan(), commit="abc123")
    path = root / "index.html"
    path.write_text(text, encoding="utf-8")
    return path


def test_kept_results_say_whose_they_are(browser, beside_page):
    browser.look(width=1200)
    browser.open(beside_page)
    for table, profile in (("tokens_per_stage", "toy-thinking"), ("families", "toy-llava-next")):
        browser.value(
            f"document.querySelectorAll('[id^=\"{table}-0\"]').forEach(e => e.open = true)"
        )
        cells = f"[...document.querySelectorAll('#{table}-0 td button')]"
        browser.value(f"{cells}.at(-1).click()")
        told = browser.value("document.getElementById('cell').innerText")
        assert f"reports/kept/{profile}.json" in told and COMMIT in told and "abc123" not in told
        assert f"python -m stages.profile {profile} && make repro" in told
        link = "document.querySelector('#cell .more a').getAttribute('href')"
        assert browser.value(link) == f"../{profile}/index.html"
        browser.value("document.getElementById('cell').close()")
    assert "toy: not comparable" in browser.value("document.getElementById('tables').textContent")


def test_a_question_has_an_address(browser, file, data):
    """What `stages.compare` links to; the next address forgets it."""
    browser.look(width=1200)
    browser.open(file)
    titles = "[...document.querySelectorAll('#question-list h3')].map(e => e.textContent)"
    follow(browser, "questions?protocol=lmms&benchmark=ai2d&doc=7&a=base&b=heima")
    assert browser.value(titles) == ["ai2d 7, lmms"]
    follow(browser, "questions?protocol=lmms&benchmark=mmvet&a=heima")
    assert len(browser.value(titles)) > 1


def test_filters_show_what_they_say(browser, file, data):
    browser.look(width=1200)
    browser.open(file)
    browser.value("document.querySelectorAll('.presets button')[0].click()")

    def right(question: dict, variant: str) -> bool:
        return question["answers"]["lmms"][variant][3][0] >= 0.5

    naive = [q for q in data["questions"] if not right(q, "heima") and right(q, "text-cot")]
    count = browser.value("document.getElementById('question-count').textContent")
    assert 0 < len(naive) < len(data["questions"])
    assert count == f"{len(naive)} of the {len(data['questions'])} shown here"
    names = browser.value(
        "[...document.querySelectorAll('#question-list h3')].map(e => e.textContent)"
    )
    assert names == [f"{q['benchmark']} {q['doc']}, lmms" for q in naive[:6]]
    browser.value("document.querySelectorAll('#question-pager button')[1].click()")
    names = browser.value(
        "[...document.querySelectorAll('#question-list h3')].map(e => e.textContent)"
    )
    assert names == [f"{q['benchmark']} {q['doc']}, lmms" for q in naive[6:12]]


def test_headings_sort(browser, file, data):
    browser.look(width=1200)
    browser.open(file)
    values = (
        "[...document.querySelector('table.cells').tBodies[0].rows]"
        ".map(row => parseFloat(row.cells[1].textContent))"
    )
    before = browser.value(values)
    heading = "document.querySelector('table.cells thead tr').cells[1]"
    browser.value(f"{heading}.querySelector('button').click()")
    assert browser.value(values) == sorted(before, reverse=True)
    assert browser.value(f"{heading}.getAttribute('aria-sort')") == "descending"
    browser.value(f"{heading}.querySelector('button').click()")
    assert browser.value(values) == sorted(before)


def test_the_page_is_usable_by_keyboard(browser, file):
    browser.look(width=1200)
    browser.open(file)
    browser.press("Tab", 9)
    assert browser.value("document.activeElement.className") == "skip"
    browser.value("document.querySelector('.findings a').focus()")
    browser.press("Enter", 13)
    browser.listen(0.2)
    first = browser.value("document.activeElement.id")
    assert first and browser.value("document.activeElement.tagName") == "BUTTON"
    browser.press("ArrowUp", 38)
    above = browser.value("document.activeElement.id")
    assert above != first and above.rsplit("-", 2)[0] == first.rsplit("-", 2)[0]
    browser.press("Enter", 13)
    assert browser.value("document.getElementById('cell').open") is True
    browser.press("Escape", 27)
    assert browser.value("document.getElementById('cell').open") is False
    assert browser.value("document.activeElement.id") == above, "one goes on where one was"
    stops = browser.value("document.querySelectorAll('.cells td [tabindex=\"0\"]').length")
    assert stops == browser.value("document.querySelectorAll('table.cells').length")


@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_stands_beyond_the_screen(browser, file, width):
    browser.look(width=width)
    browser.open(file)
    for place in ("findings", "questions?protocol=lmms&a=heima", "turns?reconstruction=caption"):
        follow(browser, place)
        assert browser.value("document.documentElement.scrollWidth") <= width
        beyond = browser.value(
            "[...document.querySelectorAll('body *')].filter("
            "e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.wide'))"
            ".map(e => e.outerHTML.slice(0, 80))"
        )
        assert beyond == []


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_ground(browser, file, dark):
    """A contrast of 4.5 to 1 (WCAG 2, AA), by day and by night."""
    browser.look(width=1200, dark=dark)
    browser.open(file)
    style = "getComputedStyle(document.querySelector('{}')).{}"

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    ground = luminance(browser.value(style.format("body", "backgroundColor")))
    assert (ground < 0.1) is dark
    follow(browser, "questions?protocol=lmms&a=heima")
    for selector in ("body", "a", ".note", ".right", ".wrong", ".tag"):
        ink = luminance(browser.value(style.format(selector, "color")))
        light, deep = max(ink, ground), min(ink, ground)
        assert (light + 0.05) / (deep + 0.05) >= 4.5, selector
    assert ("invert" in browser.value(style.format("figure img", "filter"))) is dark
