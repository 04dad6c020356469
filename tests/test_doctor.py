"""What the doctor says where all is well, and where something is wrong."""

import warnings
from importlib.metadata import version

import pytest
import torch
from typer.testing import CliRunner

import finslerconv
from finslerconv import _doctor, ops
from finslerconv.cli import app
from finslerconv.ops.backends import _choice


class Doubled(ops.ConvBackend):
    """A backend whose outputs are twice what they should be."""

    def forward(self, conv):
        return 2 * ops.reference.forward(conv)


class Broken(ops.ConvBackend):
    """A backend that computes nothing."""

    def forward(self, conv):
        raise RuntimeError("no kernel image\nis available")


@pytest.fixture
def registry(monkeypatch):
    for name in ("_devices", "_loaders", "_loaded", "_missing"):
        monkeypatch.setattr(_choice, name, dict(getattr(_choice, name)))


@pytest.mark.slow
def test_a_sound_machine():
    report = finslerconv.doctor("cpu")
    assert report.ok
    assert report.problems == []
    assert len(report.checks) == 14
    assert {c.dtype for c in report.checks} == {"float64", "float32", "float16", "bfloat16"}
    assert report.backends == {"cpu": "numba"}
    forward, both = report.timings["cpu"]["nn.Conv2d"]
    assert 0 < forward < both
    text = str(report)
    for word in (finslerconv.__version__, version("torch"), "all 14 checks passed", "numba"):
        assert word in text


@pytest.mark.slow
def test_wrong_results_are_named(registry):
    ops.register_backend("doubled", "cpu", Doubled)
    with ops.use_backend("doubled"):
        report = finslerconv.doctor("cpu", timings=False)
    assert not report.ok
    wrong = [c for c in report.checks if not c.passed]
    assert {c.name for c in wrong} == set(_doctor._OPERATORS)
    assert all(abs(c.error - 1) < 0.1 for c in wrong)
    assert "deform_conv2d in float64 on cpu: error 1.0e+00, expected at most 1e-12" in str(report)
    assert report.backends == {"cpu": "doubled"}


def test_calls_that_fail_are_named_and_do_not_end_it(registry):
    ops.register_backend("broken", "cpu", Broken)
    with ops.use_backend("broken"):
        report = finslerconv.doctor("cpu")
    assert "RuntimeError: no kernel image is available" in report.problems[0]
    assert [c.name for c in report.checks if c.passed] == ["distance", "exponential"]
    assert list(report.timings["cpu"]) == ["nn.Conv2d"]


def test_a_missing_backend_is_explained(registry, monkeypatch):
    def missing():
        raise ImportError("No module named 'numba'")

    monkeypatch.setattr(_choice, "_loaded", {})
    monkeypatch.setitem(_choice._loaders, "numba", missing)
    report = finslerconv.doctor("cpu", timings=False)
    assert report.ok  # the reference is right, only slow
    assert report.backends["cpu"] == (
        "reference, because the numba backend cannot be loaded: No module named 'numba'"
    )


def test_devices_without_a_backend_are_told_of_once(registry, monkeypatch):
    monkeypatch.setattr(_choice, "_told", set())
    with pytest.warns(RuntimeWarning, match="no backend is made for mps tensors"):
        assert ops.current_backend("mps") == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not ops.is_compiled(torch.device("mps"))
        assert not ops.is_compiled(torch.device("meta"))
        with ops.use_backend("reference"):
            assert ops.current_backend("xpu") == "reference"
            assert finslerconv.doctor("cpu", timings=False).backends == {
                "cpu": "reference, because ops.use_backend('reference') is in force"
            }


def test_an_unknown_device_is_refused():
    with pytest.raises(RuntimeError, match="nonsense"):
        finslerconv.doctor("nonsense")


def test_the_command(registry):
    result = CliRunner().invoke(app, ["doctor", "--device", "cpu", "--no-timings"])
    assert result.exit_code == 0
    assert "all 14 checks passed" in result.stdout
    ops.register_backend("broken", "cpu", Broken)
    with ops.use_backend("broken"):
        result = CliRunner().invoke(app, ["doctor", "--device", "cpu", "--no-timings"])
    assert result.exit_code == 1
    assert "checks failed" in result.stdout
