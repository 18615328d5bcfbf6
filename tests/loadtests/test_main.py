"""The command line: verbs, refusals, and who may import what."""

import ast
import subprocess
import sys

import pytest
from containers import ROOT

from loadtests import __main__ as commands

INSIDERS = {
    "stages.py": ("service", "retrieval"),
    "beams.py": ("retrieval",),
    "bundles.py": ("retrieval",),
    "rankings.py": ("retrieval",),
}


def test_alone_it_lists_the_verbs(capsys):
    assert commands.main([]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in commands.VERBS)


def test_an_unknown_verb_is_refused(capsys):
    assert commands.main(["sprint"]) == commands.REFUSED
    assert "open-loop" in capsys.readouterr().err


@pytest.mark.parametrize("verb", commands.VERBS)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        commands.main([verb, "--help"])
    assert ended.value.code == 0
    assert f"python -m loadtests {verb}" in capsys.readouterr().out


def test_a_refusal_is_one_line_and_an_exit_status():
    command = [sys.executable, "-m", "loadtests", "open-loop", "--url", "http://example.com"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == commands.REFUSED
    assert done.stderr.count("\n") == 1
    assert "another machine" in done.stderr


def test_only_these_look_inside():
    found = set()
    for path in (ROOT / "loadtests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            rooms = {name.partition(".")[0] for name in names} & {"service", "retrieval", "models", "torch"}
            found |= {(path.name, room) for room in rooms}
    assert found == {(name, room) for name, rooms in INSIDERS.items() for room in rooms}
