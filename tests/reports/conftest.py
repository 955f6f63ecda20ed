"""One fabricated reproduction of each kind, for all tests of what reads them."""

from __future__ import annotations

import shutil

import pytest

from heima import config
from heima.config.profiles import written_out
from heima.results.files import write_json
from reports import claims, tables
from reports.tables import kept
from stages import keep
from tests import fabricated, fabricated_page

COMMIT = "0123456789ab"
OTHERS = ("toy-thinking", "toy-llava-next")


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """A toy reproduction."""
    folder = tmp_path_factory.mktemp("reproduction")
    fabricated.write(folder)
    return folder


@pytest.fixture(scope="session")
def params(root):
    return config.load(root / "params.yaml")


@pytest.fixture(scope="session")
def results(root, params):
    return tables.read(root, params)


@pytest.fixture(scope="session")
def built(results):
    return tables.of_results(results)


@pytest.fixture(scope="session")
def paper_text() -> str:
    """The paper's profile with three training seeds, thinking tokens, and fewer resamples."""
    text = (fabricated.ROOT / "profiles" / "paper.yaml").read_text(encoding="utf-8")
    chain = "  # The ablations of the number"
    row = "epochs: 1, batch_size: 48, learning_rate: 1.0e-4, warmup_steps: 1, weight_decay: 0.01"
    more = "".join(
        f"  {name}-{ending}: {{data: {data}, init: {init}, thinking: {{{thinking}}}, {row}, "
        "max_grad_norm: 1.0}\n"
        for ending, thinking in (("4", "tokens: 4"), ("adaptive", "ratio: 0.3"))
        for name, data, init in (
            ("p1", "p1", "text-cot"),
            ("p2", "p2", f"p1-{ending}"),
            ("p3", "p3", f"p2-{ending}"),
            ("recover", "p3", f"p3-{ending}"),
        )
    )
    for old, new in (
        ("seeds: [42]   #", "seeds: [42, 43, 44]   #"),
        ("draws: 10000", "draws: 500"),
        (chain, more + chain),
        (
            "  answer-only: {model: answer-only}\n",
            "  answer-only: {model: answer-only}\n  heima-4: {model: recover-4}\n"
            "  heima-adaptive: {model: recover-adaptive}\n",
        ),
    ):
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


@pytest.fixture(scope="session")
def paper_results(tmp_path_factory, paper_text):
    """Results of the paper's profile, whose values may be compared with the paper's."""
    folder = tmp_path_factory.mktemp("paper")
    return tables.read(folder, fabricated.write(folder, params_text=paper_text))


@pytest.fixture(scope="session")
def paper_built(paper_results):
    return tables.of_results(paper_results)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a reproduction with invented numbers, its figures drawn."""
    root = tmp_path_factory.mktemp("finished")
    params = fabricated_page.write(root)
    fabricated_page.draw_figures(root, params)
    return root


@pytest.fixture
def damaged(finished, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture(scope="session")
def finished_params(finished):
    return config.load(finished / "params.yaml")


def written(root, profile: str) -> config.Params:
    """A finished fabricated reproduction of a profile, its claim sheet among it."""
    text = written_out(fabricated.ROOT / "profiles" / f"{profile}.yaml")
    params = fabricated.write(root, questions=8, params_text=text)
    results = tables.read(root, params)
    sheet = claims.sheet(results, tables.of_results(results))
    write_json(root / f"reports/{profile}/claims.json", claims.as_json(sheet, params, {}))
    return params


@pytest.fixture(scope="session")
def others(tmp_path_factory):
    """Profile -> its results, and the record that was kept of them."""
    found = {}
    for profile in OTHERS:
        root = tmp_path_factory.mktemp(profile)
        params = written(root, profile)
        found[profile] = tables.read(root, params), keep.keep(root, params, COMMIT)
    return found


@pytest.fixture(scope="session")
def beside(results, others, tmp_path_factory):
    """The toy's results, with those of the others beside them."""
    root = shutil.copytree(results.root, tmp_path_factory.mktemp("beside") / "root")
    for _, record in others.values():
        (root / kept.FOLDER).mkdir(exist_ok=True)
        shutil.copy(record, root / kept.FOLDER)
    return tables.read(root, results.params)


@pytest.fixture(scope="session")
def beside_built(beside):
    return tables.of_results(beside)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """MLflow takes seconds to create one."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path
