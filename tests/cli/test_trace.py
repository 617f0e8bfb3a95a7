"""`octavo trace`: events nest, sums add up, and the command says what it cannot do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from octavo.ceilings import Rates
from octavo.cli import main
from octavo.loading import LoadedModel, load
from octavo.trace import chrome_trace, spans, summarize
from octavo.workloads import Timed, decode, native_program, prefill

RATES = Rates(2, ((1 << 20, 4e10), (1 << 28, 3e10)), 6e11, 2e11)
SKEW = 20_000  # nanoseconds that the counters of two cores may be apart


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=[1, 3])
def tiny(tiny_model: Path, request: pytest.FixtureRequest) -> LoadedModel:
    return load(tiny_model, quantization="8bit", use_cache=False, threads=request.param)


@pytest.fixture(scope="module", params=["decode", "prefill"])
def traced(tiny: LoadedModel, request: pytest.FixtureRequest) -> list[Timed]:
    if request.param == "decode":
        return decode(tiny, 3, 20, 6, traced=True)
    return [step for run in prefill(tiny, 100, repetitions=2, traced=True) for step in run]


def test_marks_cover_the_run(tiny: LoadedModel, traced: list[Timed]) -> None:
    ops = native_program(tiny).ops
    for step in traced:
        assert step.marks is not None
        entered, left, members = step.marks
        assert step.began <= step.forward_began <= entered <= left <= step.forward_ended <= step.ended
        assert len(members) == native_program(tiny).threads
        for mine in spans(step):
            assert [op for i, op in enumerate(s.op for s in mine) if i == 0 or mine[i - 1].op != op] == list(range(ops + 1))
            assert all(a.ended == b.began for a, b in pairwise(mine)) and all(s.began <= s.ended + SKEW for s in mine)
            assert entered - SKEW <= mine[0].began and mine[-1].ended <= left + SKEW
            assert mine[0].what == mine[-1].what == "work"
            assert "wait" in {s.what for s in mine}  # not after every op: what reads only its own rows goes on alone


def test_sums_add_up(tiny: LoadedModel, traced: list[Timed]) -> None:
    summary = summarize(tiny, traced, RATES)
    for step, parts in zip(traced, summary.steps, strict=True):
        assert parts.total == pytest.approx(step.seconds, abs=1e-9)
        assert min(parts.engine, parts.call, parts.ops) > 0 and min(parts.start, parts.end) > -SKEW / 1e9
    assert sum(row.total for row in summary.rows) == pytest.approx(sum(parts.ops for parts in summary.steps), abs=1e-9)
    assert sum(len(row.calls) for row in summary.rows) == native_program(tiny).ops * len(traced)
    assert all(0 <= row.waited <= row.total + SKEW * len(row.calls) / 1e9 for row in summary.rows)
    if native_program(tiny).threads == 1:
        assert summary.waited < 0.2 * summary.part("ops")  # nobody to wait for but the marks themselves
    found = summary.as_json(RATES)
    json.dumps(found)
    assert found["outside_native_seconds"] > 0 and sum(op["share"] for op in found["ops"]) <= 1
    linears = {op["shape"].split(" W8")[0] for op in found["ops"] if op["kind"] == "linear"}
    assert linears == {"64 > 64+32+32", "64 > 64", "64 > 172+172", "172 > 64", "64 > 512"}


def nests(events: list[dict[str, Any]]) -> None:
    """Of one thread: two events either follow each other or one lies within the other."""
    open_until: list[float] = []
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        while open_until and open_until[-1] <= event["ts"] + 1e-6:
            open_until.pop()
        assert not open_until or event["ts"] + event["dur"] <= open_until[-1] + 1e-6, event
        open_until.append(event["ts"] + event["dur"])


def test_chromes_format_nests(tiny: LoadedModel, traced: list[Timed]) -> None:
    found = json.loads(json.dumps(chrome_trace(tiny, traced)))
    events = found["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    assert names == {0: "engine", **{1 + m: f"member {m}" for m in range(native_program(tiny).threads)}}
    timed = [e for e in events if e["ph"] == "X"]
    assert all(e["dur"] >= -SKEW / 1e3 and e["tid"] in names for e in timed)
    for thread in names:
        nests([e for e in timed if e["tid"] == thread and e["dur"] >= 0])
    calls = [e for e in timed if e["tid"] == 1 and e["name"] not in ("wait", "largest logits")]
    assert len(calls) == native_program(tiny).ops * len(traced)
    assert all({"op", "shape", "kernel", "bytes", "operations"} <= set(e["args"]) for e in calls)
    assert [e["name"] for e in timed if e["tid"] == 0] == ["step", "forward", "native"] * len(traced)


def test_tracing_changes_no_number_and_ends(tiny: LoadedModel) -> None:
    plain, watched = decode(tiny, 2, 10, 3), decode(tiny, 2, 10, 3, traced=True)
    assert all(step.marks is None for step in plain) and all(step.marks is not None for step in watched)
    before = native_program(tiny).last_trace()
    decode(tiny, 2, 10, 3)
    assert native_program(tiny).last_trace() == before  # off again: nothing was written


def test_the_command(tiny_model: Path, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["trace", str(tiny_model), "--cache-dir", str(kept), "--quantization", "4bit"]
    assert main([*base, "--batch", "2", "--context", "8", "--steps", "4", "--json", str(tmp_path / "events.json")]) == 0
    out = capsys.readouterr().out
    assert "decode, batch 2, context 8" in out and "of ceiling" in out and "waiting for others" in out and "outside native code" in out
    assert len([e for e in json.loads((tmp_path / "events.json").read_text())["traceEvents"] if e["name"] == "step"]) == 4
    assert main([*base, "--prompt", "40", "--summary"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["what"] == "prefill" and found["steps"] == 2 and found["ops"][0]["gb_per_s"] > 0


def test_a_real_model(smollm2_path: Path, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(smollm2_path), "--cache-dir", str(kept), "--quantization", "4bit", "--context", "16", "--steps", "4", "--summary"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(op["seconds"] for op in found["ops"]) < 2 * found["step_seconds"]
    linears = [op for op in found["ops"] if op["kind"] == "linear"]
    assert sum(op["operations"] for op in linears) == 2 * 134_479_872 and sum(op["calls"] for op in linears) == 30 * 4 + 1


@pytest.mark.parametrize(("options", "said", "status"), [
    (["--steps", "0"], "--steps: must be above 0", 2),
    (["--prompt", "8", "--batch", "2"], "a prompt is traced alone", 2),
    (["--prompt", "600"], "--prompt: 600 tokens", 2),
    (["--batch", "2", "--context", "510"], "--context: 510 tokens", 2),
    (["--backend", "reference"], "reference backend cannot be measured", 2),
    (["--prompt", "4", "--json", "/no/such/folder/x"], "cannot write", 1),
])
def test_what_cannot_be_traced(options: list[str], said: str, status: int, tiny_model: Path, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", str(tiny_model), "--cache-dir", str(kept), *options]) == status
    assert said in capsys.readouterr().err
