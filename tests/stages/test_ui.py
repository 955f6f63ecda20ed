"""`make ui`: a server on loopback, a link that leads to the variants, and a browser that clicks.

The remote server is a real one, too, with SQLite and artifacts of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from heima.results.files import read_json
from reports.finished import TrackingError
from reports.tracking import connection, mirror
from stages import ui
from tests import fabricated
from tests.conftest import ROOT
from tests.reports import chromium
from tests.reports.test_tracking import write_results, write_small


def free_port() -> int:
    with socket.socket() as one:
        one.bind((ui.HOST, 0))
        return one.getsockname()[1]


def test_a_link_leads_to_the_runs_view():
    link = connection.link("http://127.0.0.1:5000/", "1")
    assert link.startswith(
        "http://127.0.0.1:5000/?workflowType=machine_learning#/experiments/1/runs"
    )
    variants = connection.link("http://127.0.0.1:5000", "7", "abc")
    assert variants.startswith(link.replace("/1/", "/7/"))
    assert "tags.kind%20%3D%20%27variant%27%20and%20tags.reproduction%20%3D%20%27abc%27" in variants


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("http://me:secret@host:5000", "http://me:…@host:5000"),
        ("postgresql+psycopg://me:se:c@h/db", "postgresql+psycopg://me:…@h/db"),
        ("postgresql://me@h/db", "postgresql://me@h/db"),
    ],
)
def test_no_password_is_printed(uri, shown):
    assert connection.shown(uri) == shown


def test_the_variable_of_mlflow_decides_where_runs_go(tmp_path, monkeypatch):
    assert connection.uri_of(tmp_path).startswith("sqlite:///")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert connection.uri_of(tmp_path) == "http://127.0.0.1:1"
    assert connection.is_server(connection.uri_of(tmp_path))


def test_a_server_that_is_not_there_is_said_in_seconds(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    fabricated.lock(tmp_path, fabricated.write(tmp_path, questions=3))
    uri = f"http://me:secret@127.0.0.1:{free_port()}"
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI = http://me:…@127") as caught:
        mirror.mirror(tmp_path, uri=uri)
    assert "delete" not in str(caught.value)


def test_a_port_that_is_taken_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket() as other:
        other.bind((ui.HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit, match=f"port {port} of 127.0.0.1 is taken"):
            ui.main(port)


class Ui:
    """`python -m stages.ui` somewhere, until it has printed its links."""

    def __init__(self, folder: Path, *, code: Path | None = None, **environment: str) -> None:
        self.port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stages.ui", "--port", str(self.port)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(code or folder), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.output = ""
        while not (links := re.findall(r"^  (http\S+)$", self.output, re.M)) or len(links) < 2:
            line = self.process.stdout.readline()
            assert line, self.output
            self.output += line
        self.variants, self.everything = links

    def close(self) -> int:
        """End it, and see that its server has ended with it."""
        self.process.terminate()
        status = self.process.wait(60)
        with socket.socket() as one:
            assert one.connect_ex((ui.HOST, self.port)), "the server has been left behind"
        return status


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A fresh clone of what is committed, with the code that is here."""
    folder = tmp_path_factory.mktemp("clone") / "heima"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    for package in ("heima", "eval", "reports", "stages"):
        for file in (ROOT / package).rglob("*.py"):
            target = folder / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    for name in ("dvc.yaml", "Makefile"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def served(clone):
    found = Ui(clone)
    yield found
    assert found.close() == 128 + signal.SIGTERM


@pytest.mark.slow
def test_a_clone_shows_the_committed_results_without_running_anything(clone, served):
    assert "not finished" not in served.output
    assert not any((clone / name).exists() for name in ("models", "data", "predictions"))
    from mlflow import MlflowClient

    api = MlflowClient(f"sqlite:///{clone}/mlflow.db")
    found = api.search_runs(["1"], max_results=1000)
    kinds = [run.data.tags["kind"] for run in found]
    assert (kinds.count("variant"), kinds.count("reproduction")) == (7, 1)
    (parent,) = (run for run in found if run.data.tags["kind"] == "reproduction")
    names = {file.path for file in api.list_artifacts(parent.info.run_id)}
    assert names == {"tables", "figures", "claims.md", "index.html"}
    (heima,) = (run for run in found if run.info.run_name == "heima")
    assert heima.data.params["updates"] == "1000"
    assert "samples" in heima.data.tags
    assert len({name for run in found for name in run.data.metrics}) <= 150
    assert all(run.data.metrics and run.info.status == "FINISHED" for run in found)


BARS = """
(() => {
  const found = {};
  for (const card of document.querySelectorAll('[data-testid$="compare-runs-card"]')) {
    const plot = card.querySelector('.js-plotly-plot');
    if (!plot || !plot.data || !plot.data.length) continue;
    const bars = plot.data[0];
    found[card.innerText.split('\\n')[0]] = bars.y.map((run, at) => [run, bars.x[at]]);
  }
  return found;
})()
"""
"""A chart's title -> [run, value] of its bars."""


@pytest.fixture
def browser(tmp_path):
    if (program := chromium.installed()) is None:
        pytest.skip(f"no browser to look with: none of {', '.join(chromium.NAMES)} is installed")
    found = chromium.Chromium(program, tmp_path / "profile")
    yield found
    found.close()


@pytest.mark.slow
def test_heima_against_one_shot_in_two_clicks(clone, served, browser, tmp_path):
    """Accuracy a benchmark: the link, then *Chart view*; each benchmark's chart has both bars."""
    from mlflow import MlflowClient

    shots = Path(os.environ.get("UI_SCREENSHOTS", tmp_path))
    found = MlflowClient(f"sqlite:///{clone}/mlflow.db").search_runs(["1"], max_results=1000)
    names = {run.info.run_id: run.info.run_name for run in found}
    browser.look(width=1600, height=1000)
    browser.call("Page.navigate", url=served.variants)
    wait_for(browser, "document.body.innerText.includes('heima-no-progressive')")
    browser.screenshot(shots / "ui-table.png")
    assert "7 matching runs" in browser.value("document.body.innerText")
    click(browser, "input[name='runs-view-mode'][value='CHART']")
    wait_for(browser, f"Object.keys({BARS}).length >= 6")
    browser.listen(2)
    browser.screenshot(shots / "ui-charts.png")
    charts = browser.value(BARS)
    shown = {title: {names[run]: value for run, value in bars} for title, bars in charts.items()}
    for benchmark in ("mmstar", "mmbench", "mathvista", "ai2d", "hallusionbench"):
        bars = shown[f"accuracy/lmms/{benchmark}"]
        assert len(bars) == 7
        for variant in ("heima", "heima-no-progressive"):
            content = read_json(clone / f"metrics/score/{variant}.json")
            recorded = content["cells"][f"lmms/{benchmark}"]["accuracy"]["value"]
            assert bars[variant] == pytest.approx(recorded)


def wait_for(browser: chromium.Chromium, condition: str, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not browser.value(f"document.body !== null && {condition}"):
        assert time.monotonic() < end, condition
        browser.listen(0.3)


def click(browser: chromium.Chromium, selector: str) -> None:
    """As a mouse does it, in the middle of an element."""
    x, y = browser.value(
        f"(() => {{ const box = document.querySelector(`{selector}`).getBoundingClientRect();"
        " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


@pytest.mark.slow
def test_a_remote_server_by_mlflows_own_variable(tmp_path, monkeypatch):
    """A server with a database and artifacts of its own: the same runs, and a link to it."""
    root, elsewhere = tmp_path / "here", tmp_path / "server"
    root.mkdir()
    write_small(root)
    write_results(root)
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    port = free_port()
    server = ui.start("sqlite:///mlflow.db", port)
    address = f"http://127.0.0.1:{port}"
    try:
        ui.wait(server, address)
        for _ in range(2):  # The second time adds nothing.
            told = Ui(root, code=ROOT, MLFLOW_TRACKING_URI=address)
            assert told.variants.startswith(f"{address}/?workflowType")
            assert told.process.wait(60) == 0
        assert not (root / "mlflow.db").exists() and not (root / "mlruns").exists()
        from mlflow import MlflowClient

        api = MlflowClient(address)
        (experiment,) = (one for one in api.search_experiments() if one.name == "heima")
        found = api.search_runs([experiment.experiment_id], max_results=1000)
        assert len(found) == 1 + 2 + 15
        assert all(run.info.status == "FINISHED" for run in found)
        (parent,) = (run for run in found if run.data.tags["kind"] == "reproduction")
        path = api.download_artifacts(parent.info.run_id, "tables/benchmarks.md", str(tmp_path))
        assert "benchmarks" in Path(path).read_text(encoding="utf-8")
        assert list((elsewhere / "mlartifacts").rglob("samples.json"))
    finally:
        server.terminate()
        server.wait()
