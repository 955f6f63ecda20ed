"""A small finished reproduction for figures and the page, made once."""

from __future__ import annotations

import shutil

import pytest

from heima import config
from tests import fabricated_page


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
