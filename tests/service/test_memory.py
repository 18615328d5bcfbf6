"""Memory is given back where the C library can, and nothing is said where it cannot."""

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from service import memory

ROOT = Path(__file__).parents[2]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc trims")
def test_holes_between_what_is_in_use_are_given_back():
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
    size = 64 * 1024  # too small to be mapped on its own
    blocks = [libc.malloc(size) for _ in range(1000)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks[:-1]:
        libc.free(ctypes.c_void_p(block))  # the last one stays, above all the others
    before = resident_bytes()
    memory.give_back()
    assert resident_bytes() < before - 32e6
    libc.free(ctypes.c_void_p(blocks[-1]))


ARENAS = """
import ctypes, threading
from service import memory

memory.share_one_arena()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
threads = [threading.Thread(target=libc.malloc, args=(100_000,)) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.malloc_stats()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has arenas")
def test_all_threads_share_one_arena():
    ran = subprocess.run([sys.executable, "-c", ARENAS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stderr.count("Arena") == 1


@pytest.mark.parametrize("lacking", [AttributeError, OSError, TypeError])
def test_another_c_library_is_left_alone(monkeypatch, lacking):
    def absent(_name):
        raise lacking

    monkeypatch.setattr(memory.ctypes, "CDLL", absent)
    assert memory._glibc("malloc_trim", ()) is None
    monkeypatch.setattr(memory, "_trim", None)
    monkeypatch.setattr(memory, "_mallopt", None)
    memory.give_back()
    memory.share_one_arena()
