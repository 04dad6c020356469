"""Who waits is told why, and nobody else."""

import sys
import time

import pytest

import finslerconv
from finslerconv import _progress
from finslerconv._compiled import compile_and_keep
from finslerconv._progress import waiting


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    monkeypatch.setattr(_progress, "_told", set())


def on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


def test_one_line_on_a_terminal(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    for _ in range(2):
        with waiting("compiling f", "compiling", patience=0.01):
            time.sleep(0.1)
    assert capsys.readouterr().err == "finslerconv: compiling\n"


def test_nothing_elsewhere(capsys):
    with waiting("compiling f", "compiling", patience=0.01):
        time.sleep(0.1)
    assert capsys.readouterr() == ("", "")


def test_nothing_of_what_is_quick(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    with waiting("compiling f", "compiling"):
        pass
    assert capsys.readouterr().err == ""


def test_a_bar_among_the_bars():
    pytest.importorskip("rich")
    with finslerconv.progress():
        bars = _progress._shown
        with waiting("compiling f", "compiling", patience=0.01):
            time.sleep(0.1)
            assert [task.description for task in bars.tasks] == ["compiling f"]
        assert not bars.tasks


def test_an_error_ends_the_waiting(capsys, monkeypatch):
    on_a_terminal(monkeypatch)
    with pytest.raises(ZeroDivisionError), waiting("compiling f", "compiling", patience=0.05):
        raise ZeroDivisionError
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_compiling_a_kernel_is_such_a_wait(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    waited = []
    monkeypatch.setattr(
        "finslerconv._compiled.waiting",
        lambda what, reason: waited.append(what) or waiting(what, reason),
    )
    kernel = compile_and_keep(lambda x: 2 * x)
    assert [kernel(2.0), kernel(3.0), kernel(1)] == [4.0, 6.0, 2]
    assert waited == ["compiling <lambda>"] * 2
