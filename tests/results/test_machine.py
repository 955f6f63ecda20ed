"""Pins: whom they concern, that they win, and that what is pinned computes as torch does."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heima import config
from heima.config.profiles import written_out
from heima.results import machine
from heima.vlm import kernels, models
from tests.conftest import ROOT

needs_pins = pytest.mark.skipif(not machine.can_pin(), reason="this CPU has no AVX2 and FMA")


def python(code: str, folder=ROOT, **environ: str) -> subprocess.CompletedProcess:
    bare = {name: value for name, value in os.environ.items() if name not in machine.PINS}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**bare, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        check=True,
    )


def test_pins_are_for_the_toys_alone(tmp_path):
    for profile in sorted((ROOT / "profiles").glob("*.yaml")):
        toy = config.load(profile).family in config.TOY_FAMILIES
        written = tmp_path / profile.name
        written.write_text(written_out(profile), encoding="utf-8")
        assert machine.wants_pins(written) == toy, profile
    assert not machine.wants_pins(tmp_path / "params.yaml")
    other = tmp_path / "other.yaml"
    other.write_text("a: {family: toy-mllama}\n# family: toy-mllama\nfamily: 'paper-mllama'\n")
    assert not machine.wants_pins(other)
    other.write_text('seed: 1\nfamily:   "toy-llava-next"  # tiny\n')
    assert machine.wants_pins(other)


@needs_pins
def test_pins_overrule_the_users_settings_and_say_so(capsys):
    environ = {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1", "HOME": "here"}
    assert machine.pin(environ) and machine.pinned(environ) and environ["HOME"] == "here"
    said = capsys.readouterr().err
    assert "ATEN_CPU_CAPABILITY=default" in said and "OMP_NUM_THREADS" not in said
    assert not machine.pin(environ) and not capsys.readouterr().err


def test_a_cpu_that_cannot_is_left_alone_and_named_once(monkeypatch, capsys):
    monkeypatch.setattr(machine, "cpu", lambda: {"model name": "Nehalem", "flags": "sse4_2"})
    environ = {"ATEN_CPU_CAPABILITY": "default"}
    assert not machine.pin(environ) and not machine.pinned(environ)
    assert environ["ATEN_CPU_CAPABILITY"] == "default"
    assert "no AVX2" in capsys.readouterr().err
    assert not machine.pin(environ) and not capsys.readouterr().err


_FACTS = """
import stages, heima.vlm.kernels, json
from heima.results import machine
print(json.dumps(machine.facts()))
"""


@needs_pins
def test_the_libraries_obey_the_pins_whatever_was_set(tmp_path):
    (tmp_path / "params.yaml").write_text("family: toy-mllama\n")
    said = python(_FACTS, tmp_path, ATEN_CPU_CAPABILITY="default", OPENBLAS_CORETYPE="Nehalem")
    facts = json.loads(said.stdout)
    assert facts["pinned"] and facts["aten"] == "AVX2" and facts["threads"] == 1
    assert facts["openblas"] == ["Haswell"]
    assert "overrules" in said.stderr


def test_other_profiles_keep_the_machines_own_instructions(tmp_path):
    (tmp_path / "params.yaml").write_text("family: mllama\n")
    facts = json.loads(python(_FACTS, tmp_path).stdout)
    assert not facts["pinned"]
    assert facts["instructions"]["MKL_CBWR"] == "unset"


@needs_pins
def test_a_stage_starts_again_with_a_fixed_hash_seed(tmp_path):
    (tmp_path / "params.yaml").write_text("family: toy-mllama\n")
    # Python runs this file whenever a process starts.
    (tmp_path / "sitecustomize.py").write_text("print(hash('thinking'))\n")
    started = [
        subprocess.run(
            [sys.executable, "-m", "stages.canary", "--help"],
            cwd=tmp_path,
            env={
                **{name: value for name, value in os.environ.items() if name not in machine.PINS},
                "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
            },
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("usage:")[0]
        for _ in range(2)
    ]
    (first, hashed), (second, again) = (one.split() for one in started)
    assert first != second and hashed == again


def test_versions_and_cpu_are_named():
    versions = machine.versions()
    assert versions["torch"] == torch.__version__ and versions["numpy"] == np.__version__
    assert machine.facts()["cpu"] == machine.cpu_name() != ""


@pytest.fixture(scope="module")
def installed():
    kernels.install()
    assert models  # importing it installs them
    if not machine.pinned():
        pytest.skip("this CPU has no AVX2 and FMA")


sizes = st.integers(0, 40)


@needs_pins
@settings(deadline=None, max_examples=60)
@given(n=sizes, k=sizes, m=sizes, batch=st.integers(0, 4), seed=st.integers(0, 999), data=st.data())
def test_products_are_those_of_float64(installed, n, k, m, batch, seed, data):
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        """Values in a layout of their own: plain, transposed, or every second of a row."""
        layout = data.draw(st.sampled_from(("plain", "transposed", "strided")))
        if layout == "transposed":
            drawn = torch.randn(*reversed(shape), generator=generator)
            return drawn.permute(*reversed(range(len(shape))))
        if layout == "strided":
            return torch.randn(*shape[:-1], 2 * shape[-1], generator=generator)[..., ::2]
        return torch.randn(*shape, generator=generator)

    a, b, added = drawn(n, k), drawn(k, m), drawn(m)
    close = {"rtol": 1e-4, "atol": 1e-4}
    exact = a.double() @ b.double()
    torch.testing.assert_close(a @ b, exact.float(), **close)
    torch.testing.assert_close(
        torch.addmm(added, a, b, beta=0.5, alpha=-2),
        (0.5 * added.double() - 2 * exact).float(),
        **close,
    )
    stacked, other = drawn(batch, n, k), drawn(batch, k, m)
    torch.testing.assert_close(
        torch.bmm(stacked, other), (stacked.double() @ other.double()).float(), **close
    )


@needs_pins
def test_gradients_pass_through_the_products(installed):
    torch.manual_seed(0)
    layer = torch.nn.Linear(7, 5)
    inputs = torch.randn(3, 4, 7, requires_grad=True)
    layer(inputs).square().sum().backward()
    exact = torch.nn.Linear(7, 5).double()
    exact.load_state_dict({name: value.double() for name, value in layer.state_dict().items()})
    doubled = inputs.detach().double().requires_grad_()
    exact(doubled).square().sum().backward()
    torch.testing.assert_close(inputs.grad, doubled.grad.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.weight.grad, exact.weight.grad.float(), rtol=1e-4, atol=1e-4)


@needs_pins
def test_torch_keeps_other_types_and_its_own_words(installed):
    ones = torch.ones(2, 3, dtype=torch.bfloat16)
    assert (ones @ ones.mT).dtype is torch.bfloat16
    assert torch.equal(
        torch.ones(2, 3, dtype=torch.int64) @ torch.ones(3, 2, dtype=torch.int64),
        torch.full((2, 2), 3),
    )
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        torch.ones(2, 3) @ torch.ones(2, 3)
    with pytest.raises(RuntimeError, match="batch"):
        torch.bmm(torch.ones(4, 2, 3), torch.ones(1, 3, 2))
    whatever = torch.full((2, 2), float("nan"))
    assert torch.addmm(whatever, torch.ones(2, 3), torch.ones(3, 2), beta=0).eq(3).all()


@needs_pins
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_square_roots_are_exact(installed, dtype):
    values = torch.rand(10_001, generator=torch.Generator().manual_seed(1), dtype=dtype) * 1e3
    exact = np.sqrt(values.numpy())
    assert np.array_equal(values.sqrt().numpy(), exact)
    assert np.array_equal(values[::3].sqrt().numpy(), exact[::3])
    assert np.array_equal(torch._foreach_sqrt([values])[0].numpy(), exact)
    assert values.clone().sqrt_().numpy().tobytes() == exact.tobytes()
    assert torch.tensor(-1.0).sqrt().isnan()
    assert torch.tensor([4.0], dtype=torch.bfloat16).sqrt().item() == 2
