"""Machine: cgroup limits, forced instruction sets, and threads that rest."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from octavo import machine, qtensor
from octavo.cache import KVPool, Step
from octavo.errors import UsageError
from octavo.kernels.native import NativeOps
from octavo.schemes import TensorSpec


def test_detects_this_machine() -> None:
    found = machine.detect()
    assert found.isa == found.isas[0] and found.isas[-1] == "portable"
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert 0 < found.memory_available <= found.memory_total
    assert (len(found.fingerprint) == 16 and machine.detect("portable").fingerprint != found.fingerprint) or found.isa == "portable"
    with pytest.raises(UsageError, match=r"possible: .*portable"):
        machine.detect("avx1024")


@pytest.mark.parametrize("quota,cores", [("max 100000", None), ("150000 100000", 2), ("50000 100000", 1), ("", None), ("nonsense", None)])
def test_cpu_quota_of_a_container(quota: str, cores: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert machine.detect().cores == (cores or 8)


def test_cpu_quota_of_an_old_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("300000\n")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert machine.detect().cores == 3


def test_memory_limit_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "memory.current").write_text("400000000\n")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    found = machine.detect()
    assert (found.memory_total, found.memory_available) == (1_000_000_000, 600_000_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.detect().memory_total > 1_000_000_000


def program(ops: NativeOps) -> object:
    weight = ops.prepare(qtensor.quantize(np.ones((64, 64), np.float32), TensorSpec("fp32")), TensorSpec("fp32"))
    return ops.capture(lambda o: o.linear(o.select(o.embed(weight)), [weight])[0])


def run_once(program: object) -> np.ndarray:
    ints = [np.array(v, np.int32) for v in ([1, 2], [0, 1], [0, 1], [0, 2], [2])]
    step = Step(*ints, tables=np.zeros((1, 1), np.int32), select=np.array([1], np.int32))
    return program.run(step, KVPool(1, [1], [8], TensorSpec("fp32")))  # type: ignore[attr-defined]


def test_an_idle_team_uses_no_cpu() -> None:
    work = program(NativeOps(4))
    run_once(work)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.05


def test_a_team_does_not_follow_into_a_fork() -> None:
    work = program(NativeOps(2))
    run_once(work)
    child = os.fork()
    if child == 0:
        try:
            run_once(work)
        except RuntimeError as error:
            os._exit(0 if "fork" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_memory_limit_of_an_old_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that the kernel has cached can be dropped: they count as available."""
    own = tmp_path / "memory" / "box" / "inner"
    own.mkdir(parents=True)
    (tmp_path / "self").write_text("9:name=systemd:/\n4:memory:/box/inner\n0::/\n")
    (own.parent / "memory.limit_in_bytes").write_text("1000000000\n")
    (own.parent / "memory.usage_in_bytes").write_text("900000000\n")
    (own.parent / "memory.stat").write_text("cache 700000000\ntotal_active_file 300000000\ntotal_inactive_file 400000000\n")
    (own / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "self")
    found = machine.detect()
    assert (found.memory_total, found.memory_available) == (1_000_000_000, 800_000_000)


def test_limits_of_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The innermost group and those around it: the smallest limit counts."""
    own = tmp_path / "system.slice" / "octavo.service"
    own.mkdir(parents=True)
    (tmp_path / "self").write_text("0::/system.slice/octavo.service\n")
    (own / "cpu.max").write_text("300000 100000\n")
    (own.parent / "cpu.max").write_text("200000 100000\n")
    (own / "memory.max").write_text("2000000000\n")
    (own / "memory.current").write_text("500000000\n")
    (own / "memory.stat").write_text("anon 200000000\nactive_file 100000000\ninactive_file 200000000\n")
    (own.parent / "memory.max").write_text("1500000000\n")
    (own.parent / "memory.current").write_text("600000000\n")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "self")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    found = machine.detect()
    assert (found.cores, found.memory_total, found.memory_available) == (2, 1_500_000_000, 900_000_000)
    (tmp_path / "self").write_text("0::/../elsewhere\n")
    assert machine.detect().cores == 8


def test_freed_memory_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces too small for mappings of their own, with one at the end that is still held, which is what keeps the heap from shrinking by itself."""
    import ctypes

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    pieces = [libc.malloc(64 << 10) for _ in range(1024)]
    for piece in pieces:
        ctypes.memset(piece, 1, 64 << 10)
    held = libc.malloc(64 << 10)
    for piece in pieces:
        libc.free(piece)
    before = resident()
    machine.give_back_freed()
    after = resident()
    libc.free(held)
    assert before - after > 32 << 20
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # a C library without the call
    machine.give_back_freed()


def test_what_others_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy neighbour shows; a search that has just ended does not, as it would in a load average."""
    with subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        taken = machine.taken_by_others(0.5)
        busy.kill()
    assert taken is not None and taken > 0.3
    monkeypatch.setattr(machine, "STAT", tmp_path / "none")
    assert machine.taken_by_others(0.01) is None
