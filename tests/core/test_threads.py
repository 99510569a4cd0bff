"""How threads wait: the choice between spinning and sleeping, and who may overrule it."""

import os

import pytest

from utils.core import threads


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """Four cores; returns a function that says how many threads run at each look."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"):
        # Set, then deleted: what the test sets is undone afterwards.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threads, "RUNNING", tmp_path / "loadavg")
    looks = []
    monkeypatch.setattr(threads.time, "sleep", lambda _: looks and write(looks.pop(0)))

    def write(running):
        (tmp_path / "loadavg").write_text(f"0.50 0.40 0.30 {running}/200 4711\n")

    def running(first, *more):
        write(first)
        looks[:] = more

    return running


def chosen():
    threads.choose_waiting()
    return os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY")


def test_threads_spin_while_nobody_else_computes(machine):
    machine(1)
    assert chosen() == ("20000", None)


def test_threads_sleep_where_one_core_is_taken(machine):
    machine(2)
    assert chosen() == (None, "passive")


def test_cores_that_are_left_count(machine, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    machine(3)
    assert threads.cores_are_free()
    machine(4)
    assert not threads.cores_are_free()


def test_a_moment_of_work_elsewhere_does_not_decide(machine):
    machine(1, 9, 1, 9, 1)
    assert threads.cores_are_free()
    machine(9, 1, 9, 1, 9)
    assert not threads.cores_are_free()


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "7")])
def test_the_shell_decides(machine, monkeypatch, name, value):
    machine(9)
    monkeypatch.setenv(name, value)
    threads.choose_waiting()
    assert {key: os.environ[key] for key in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if key in os.environ} == {name: value}


@pytest.mark.parametrize("text", [None, "", "0.1 0.2", "0.1 0.2 0.3 many/200 1"])
def test_threads_sleep_where_the_machine_says_nothing(tmp_path, text):
    if text is not None:
        (tmp_path / "loadavg").write_text(text)
    assert chosen() == (None, "passive")
