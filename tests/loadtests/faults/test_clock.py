"""A wall clock that another process sets."""

import subprocess
import sys

from containers import ROOT

from loadtests.faults.clock import Offset


def test_two_hold_the_same_offset(tmp_path):
    here, there = Offset(tmp_path / "clock"), Offset(tmp_path / "clock")
    clock = there.added_to(lambda: 100.0)
    assert clock() == 100.0
    here.set(-3600.0)
    assert clock() == -3500.0


def test_the_service_runs_by_it_and_takes_its_own_arguments(tmp_path):
    Offset(tmp_path / "clock").set(1e9)
    code = (
        "import runpy, sys, time\n"
        "before = time.time()\n"
        "runpy.run_module = lambda *_, **__: print(round((time.time() - before) / 1e8), sys.argv[1:])\n"
        f"from loadtests.faults import clock; clock.main([{str(tmp_path / 'clock')!r}, '--port', '0'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "10 ['--port', '0']"
