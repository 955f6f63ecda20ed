"""The package: complete, typed, citable, and usable from any folder."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from heima import cli
from stages import resolve
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
OF_THE_REPOSITORY = (
    *(f"reports/{profile.stem}/" for profile in (ROOT / "profiles").glob("*.yaml")),
    "reports/kept/",
    "reports/canary.json",
)
"""Results and the canary's record: they are read from the repository that a command runs in."""


def tracked() -> list[str]:
    """What git has, or would have, of the packages."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "--", *resolve.PACKAGES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    return [name for name in names if name and not name.startswith(OF_THE_REPOSITORY)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, without a network, by the backend that pyproject.toml names."""
    folder = tmp_path_factory.mktemp("wheel")
    source, out = folder / "source", folder / "out"
    more = ["pyproject.toml", "README.md", "LICENSE", "reports/toy/claims.json"]
    for name in (*tracked(), *more):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    out.mkdir()
    build = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", build, str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """The wheel's content, as an installer lays it out."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_has_every_file_of_the_packages_and_no_result(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == set(tracked())
    assert {f"{package}/py.typed" for package in resolve.PACKAGES} <= names


def run(site: Path, folder: Path, *words: str, status: int = 0) -> str:
    """Python in `folder`, with the packages of the wheel and no others of ours."""
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


USED = """
import sys, heima, eval, reports, stages.resolve
from pathlib import Path
site = Path(sys.argv[1])
for package in (heima, eval, reports):
    assert Path(package.__file__).is_relative_to(site), package.__file__
from reports import page
from reports.figures import style
assert {p.name for p in page.TEMPLATES.iterdir()} == {"page.html", "page.css", "page.js"}
with style.applied():
    pass
from lmms_eval.utils import load_yaml_config
from eval import tasks
for benchmark in ("mmstar", "mmvet"):
    assert tasks._configuration("vlmevalkit", benchmark)["task"].endswith(benchmark)
from importlib import metadata
[entry] = metadata.entry_points(group="lmms_eval.models", name="heima")
names = {one.model_id for one in entry.load()()}
assert names == {"heima", "heima-replay"}, names
print("all there")
"""


@pytest.mark.slow
def test_what_is_read_at_run_time_is_found_from_any_folder(site, tmp_path):
    assert "all there" in run(site, tmp_path, "-c", USED, str(site))


def test_the_command_lists_what_it_can_and_needs_a_repository(site, tmp_path):
    ask = ("-c", "from heima.cli import main; main()")
    listed = run(site, tmp_path, *ask)
    for name in cli.COMMANDS:
        assert f"\n  {name} " in listed
    said = run(site, tmp_path, *ask, "compare", "a", "b", status=1)
    assert "has no params.yaml: run `heima compare` in the repository" in said
    said = run(site, tmp_path, *ask, "nonesuch", status=1)
    assert said.startswith("error: 'nonesuch' is not one of repro, plan, ")
    assert "there is no such folder" in run(site, tmp_path, *ask, "-C", "nowhere", status=1)
    # With -C it is that folder's own code that runs, and its words come through.
    said = run(site, tmp_path, *ask, "-C", str(ROOT), "page")
    assert "reports/toy/index.html" in said


def test_every_command_is_a_module_that_says_what_it_does():
    assert PROJECT["project"]["scripts"] == {"heima": "heima.cli:main"}
    for name, command in cli.COMMANDS.items():
        words = cli.said(command)
        assert words and len(words) <= 100 and "\n" not in words, name
        if command.module != "dvc":
            assert resolve.module_path(ROOT, command.module).is_file()


def imported() -> set[str]:
    """The distributions whose modules the packages import; the optional engine is none."""
    distributions = metadata.packages_distributions()
    found = set()
    for path in (ROOT / name for name in tracked() if name.endswith(".py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            found |= {module.partition(".")[0] for module in modules}
    ours = {*sys.stdlib_module_names, *resolve.PACKAGES, "vllm"}
    by_module = {"mlflow": "mlflow", "ruamel": "ruamel.yaml"}
    return {by_module.get(name) or distributions[name][0] for name in found - ours}


def plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def test_dependencies_are_what_is_imported_in_versions_that_are_pinned():
    """lmms-eval stands beside them: its own list excludes DVC's."""
    given = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
    assert {plain(one.name) for one in given} == {plain(name) for name in imported()} - {
        "lmms-eval"
    }
    pins = {}
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            [version] = pin.specifier
            pins[plain(pin.name)] = version.version
    for one in given:
        assert pins[plain(one.name)] in one.specifier, one


def test_the_citation_is_that_of_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0" and cited["version"] == PROJECT["project"]["version"]
    assert cited["license"] == PROJECT["project"]["license"]
    paper = cited["preferred-citation"]
    assert paper["title"] == "Efficient Reasoning with Hidden Thinking"
    assert (paper["volume"], paper["start"], paper["end"], paper["year"]) == (
        306, "111225", "111240", 2026,
    )  # fmt: skip
    assert len(paper["authors"]) == 7 and paper["authors"][0]["family-names"] == "Shen"
    assert "2501.19201" in paper["url"]
