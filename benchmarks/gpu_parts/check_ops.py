"""The other kernels on this device against float64, and whole forwards: recorded, captured, replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from octavo.cache import PAGE, KVPool
from octavo.kernels.reference import ReferenceOps, round_activations
from octavo.kernels.triton import attention, embed, experts, gate, norm, program, rope, rows, store
from octavo.kernels.triton.pool import GpuPool
from octavo.kernels.triton.tiles import gpu
from octavo.kernels.triton.weights import unpacked
from octavo.schemes import TensorSpec

from .check import NARROW, device, numbers_of, weight_of
from .forwards import forward, graphs, step_of

FLOAT, NORMED, ATTENDED = 3e-6, 2e-5, 2e-5   # largest error over the largest number, float32 in and out
ATTENDED_NARROW = 1e-2                        # queries, softmax weights and results in bfloat16
CACHES = {"fp32": TensorSpec("fp32"), "bf16": TensorSpec("bf16"), "int8": TensorSpec("int8", "token", dynamic=True),
          "fp8": TensorSpec("fp8e4m3", "token", dynamic=True)}


class Findings:
    """Errors against tolerances, by what they are of."""

    def __init__(self) -> None:
        self.checks, self.worst, self.tolerance = 0, 0.0, 0.0
        self.failed: list[str] = []

    def close(self, what: str, found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
        """The largest error over the largest number."""
        self.checks += 1
        a, b = found.double().cpu(), wanted.double().cpu()
        error = float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) if a.shape == b.shape else 1e30
        if not error <= tolerance:
            self.failed.append(f"{what}: error {error:.1e} over {tolerance:.0e}")
        if (error if error == error else 1e30) * self.tolerance >= self.worst * tolerance:  # the one that uses up most of what it may
            self.worst, self.tolerance = (error if error == error else 1e30), tolerance

    def expect(self, good: bool, what: str) -> None:
        self.checks += 1
        if not good:
            self.failed.append(what)

    def to_json(self) -> dict[str, Any]:
        return {"tolerance": self.tolerance, "worst": self.worst, "failed": self.failed, "checks": self.checks}


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """{"tolerance", "worst", "failed", "checks"} of `case["what"]`: a name, perhaps with words that its function takes."""
    torch.manual_seed(1)
    found = Findings()
    what, tiny = case["what"], bool(case["tiny"])
    for name, run in KINDS.items():
        if what == name or what.startswith(name + " "):
            run(found, what.removeprefix(name).strip(), tiny)
            return found.to_json()
    raise ValueError(f"no check is called {what!r}")


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=device())


def _rounding(found: Findings, _: str, tiny: bool) -> None:
    for count, k in ((3, 70),) if tiny else ((1, 1061), (8, 4096), (33, 1061), (512, 4096)):
        x = random(count, k) * torch.exp(random(count, 1))
        for format, group in (("int8", 0), ("int8", 64), ("fp8e4m3", 0), ("fp8e4m3", 128)):
            spec = TensorSpec(format, "group" if group else "token", group, dynamic=True)
            wanted = torch.from_numpy(round_activations(x.cpu().numpy(), spec))
            got = numbers_of(rows.rounded(x, format, group)).cpu()
            found.expect(int((got.float() != wanted.float()).sum()) <= got.numel() // 10000, f"{format} in groups of {group}, {count} x {k}: other codes")
            found.close(f"{format} in groups of {group}, {count} x {k}", got, wanted, 2.0**-4)


def _normed(found: Findings, _: str, tiny: bool) -> None:
    for count, k in ((3, 128),) if tiny else ((1, 4096), (33, 1061), (64, 7168)):
        x, gain = random(count, k), random(k)
        wide = x.double()
        wanted = wide / (wide.square().mean(dim=1, keepdim=True) + 1e-5).sqrt() * gain.double()
        for format, group in (("int8", 0), ("fp8e4m3", 128)):
            y = torch.empty_like(x)
            got = rows.normed(x, gain, 1e-5, format, group, y=y)
            found.close(f"norm, {count} x {k}", y, wanted, NORMED)
            runs = wanted.split(group or k, dim=1)
            step = torch.cat([run.abs().amax(dim=1, keepdim=True).expand_as(run) for run in runs], dim=1) * (1 / 254 if format == "int8" else 1 / 28)
            near = (numbers_of(got) - wanted).abs() <= step * 1.01
            found.expect(bool(near.all()), f"norm to {format}, {count} x {k}: a code is off by more than half a step")


def _rms_norm(found: Findings, _: str, tiny: bool) -> None:
    for count, width, groups in ((3, 48, 2),) if tiny else ((1, 4096, 1), (7, 1061, 1), (64, 8192, 1), (33, 1024, 8)):
        x, gain = random(count, width), random(width // groups)
        wide = x.double().view(count, groups, -1)
        wanted = (wide / (wide.square().mean(dim=2, keepdim=True) + 1e-5).sqrt() * (1 + gain.double())).view(count, width)
        for dtype, tolerance in ((torch.float32, NORMED), (torch.bfloat16, NARROW)):
            out = torch.empty(count, width, dtype=dtype, device=device())
            norm.rms_norm(x, gain, out, 1e-5, 1.0, groups)
            found.close(f"{count} x {width} in {groups} to {dtype}", out, wanted, tolerance)


def _rope(found: Findings, _: str, tiny: bool) -> None:
    for count, heads, dim, rotary in ((3, 2, 24, 24),) if tiny else ((1, 32, 128, 128), (33, 8, 128, 64), (64, 4, 96, 96)):
        x = random(count, heads * dim)
        angles = torch.rand(400, rotary // 2, device=device()) * 6
        positions = torch.randint(0, 400, (count,), device=device(), dtype=torch.int32)
        cos, sin = (part[positions.long()].double()[:, None, :] for part in (angles.cos(), angles.sin()))
        wide = x.double().view(count, heads, dim)
        low, high, rest = wide[:, :, : rotary // 2], wide[:, :, rotary // 2 : rotary], wide[:, :, rotary:]
        wanted = torch.cat([low * cos - high * sin, high * cos + low * sin, rest], dim=2).view(count, -1)
        out = torch.empty_like(x)
        rope.rope(x, out, torch.cat([angles.cos(), angles.sin()], dim=1).contiguous(), positions, heads, dim, rotary)
        found.close(f"{count} rows, {heads} heads of {dim}, {rotary} rotary", out, wanted, FLOAT)


def _gates(found: Findings, _: str, tiny: bool) -> None:
    for count, width in ((3, 70),) if tiny else ((1, 14336), (33, 1061), (512, 2048)):
        x, up = random(count, width) * 3, random(count, width)
        wide, other = x.double(), up.double()
        acts: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu, "gelu_tanh": lambda t: torch.nn.functional.gelu(t, approximate="tanh")}
        for kind, act in acts.items():
            out = torch.empty_like(x)
            gate.gate(kind, x, up, out)
            found.close(f"{kind}, {count} x {width}", out, act(wide) * other, NORMED)
        out = torch.empty_like(x)
        gate.add(x, up, out)
        found.close(f"add, {count} x {width}", out, wide + other, FLOAT)
        gate.softcap(x, out, 2.0)
        found.close(f"softcap, {count} x {width}", out, 2 * torch.tanh(wide / 2), NORMED)


def _embedding(found: Findings, _: str, tiny: bool) -> None:
    for name in ("bf16", "int8 channel", "int4 g64 zeros", "nf4 g64", "mxfp4", "fp8e4m3 channel", "fp32"):
        n, k, count = (20, 70, 3) if tiny else (333, 1061, 33)
        weight = weight_of(name, n, k, TensorSpec("bf16"))[1]
        tokens = torch.randint(0, n, (count,), device=device(), dtype=torch.int32)
        out = torch.empty(count, k, device=device())
        embed.embed(weight, tokens, out, 2.0)
        found.close(name, out, 2 * unpacked(weight).double()[tokens.long()], FLOAT)
    x, places = random(9, 1061), torch.tensor([8, 0, 3], dtype=torch.int32, device=device())
    out = torch.empty(3, 1061, device=device())
    embed.take(x, places, out)
    found.expect(torch.equal(out, x[places.long()]), "taken rows are not the rows")


def _attention(found: Findings, what: str, tiny: bool) -> None:
    """Prompts, chunks and decoded tokens of several sequences, up to three runs of a split, over pages that held NaN."""
    dtype = torch.float32 if what == "fp32" else torch.bfloat16
    cache = what if what in CACHES else "bf16"
    window, softcap = (300, 20.0) if what == "window" else (0, 0.0)
    kinds = [(4, 2, 24)] if tiny else [(8, 8, 256), (2, 1, 192)] if what == "wide heads" else [(8, 2, 128), (32, 8, 64), (3, 1, 80)]
    sizes = [[(5, 0), (33, 0)], [(1, 5), (1, 33)]] if tiny else [[(70, 0), (600, 0), (255, 0), (1, 0)], [(1, 70), (1, 600), (1, 255), (3, 1)]]
    most = max(-(-(new + past) // PAGE) for parts in sizes for new, past in parts)
    for heads, kv_heads, dim in kinds:
        ours, theirs = GpuPool(4 * most, [kv_heads], [dim], CACHES[cache], device=device()), KVPool(4 * most, [kv_heads], [dim], CACHES[cache])
        for array in ours.layers[0].arrays:
            array.fill_(float("nan") if array.is_floating_point() else 0x7F)
        for parts in sizes:
            step = step_of(parts, most)
            count = len(step.tokens)
            q, k, v = (random(count, width).to(dtype) for width in (heads * dim, kv_heads * dim, kv_heads * dim))
            now = program.now_of(step, ours, device(), dtype, 0, frozenset([attention.tile_rows(heads // kv_heads, dim)]))
            store.store(q, k, v, None, None, now.positions, now.slots, ours.layers[0], heads)
            out = torch.empty_like(q)
            attention.attend(q, out, ours.layers[0], now.who, dim**-0.5, window, softcap)
            reference = ReferenceOps()
            reference.enter(step, theirs)
            a, b, c = (part.double().cpu().numpy() for part in (q, k, v))
            wanted = reference.attention(a, b, c, 0, heads=heads, kv_heads=kv_heads, head_dim=dim, scale=dim**-0.5, window=window, softcap=softcap)
            found.close(f"{heads} heads of {dim} over {kv_heads}, {count} rows", out, torch.from_numpy(wanted),
                        ATTENDED if dtype == torch.float32 and cache == "fp32" else ATTENDED_NARROW)


def _experts(found: Findings, name: str, tiny: bool) -> None:
    count, top, (n, k) = 8, 2, (24, 70) if tiny else (333, 1061)
    weights = [weight_of(name, n, k, TensorSpec("bf16"), seed)[1] for seed in range(count)]
    layer, values = experts.stacked(weights), torch.stack([unpacked(one).double() for one in weights])
    for rows_ in (1, 3) if tiny else (1, 3, 33, 300, 1024):
        x = random(rows_, k).to(torch.bfloat16).float()
        chosen = torch.rand(rows_, count, device=device()).topk(top, dim=1).indices
        tile = experts.tile_for(layer.like, rows_ * top, count, gpu(device()))
        y = experts.multiply(x, layer, experts.route(chosen, count, tile.rows), tile)
        wanted = torch.stack([(x.double() @ values[at].T) for at in range(count)])[chosen, torch.arange(rows_, device=device())[:, None]].view(-1, n)
        found.close(f"{rows_} rows", y, wanted, FLOAT * 10 if name != "int4 g64 zeros" else 1e-4)
        shares = torch.rand(rows_, top, device=device())
        found.close(f"{rows_} rows, mixed", experts.mix(y, shares), (wanted.view(rows_, top, n) * shares.double()[:, :, None]).sum(dim=1), 1e-4)
        x[0] = float("nan")
        again = experts.multiply(x, layer, experts.route(chosen, count, tile.rows), tile)
        found.expect(bool(torch.isnan(again[:top]).all()) and torch.equal(again[top:], y[top:]), f"{rows_} rows: NaN left its row")
        if rows_ > 1:
            tile = experts.tile_for(layer.like, top, count, gpu(device()))
            few = experts.multiply(x[1:3], layer, experts.route(chosen[1:3], count, tile.rows), tile)
            alone = experts.multiply(x[1:2], layer, experts.route(chosen[1:2], count, tile.rows), tile)
            found.expect(torch.equal(alone, few[:top]), f"{rows_} rows: a row's bits depend on company")


KINDS: dict[str, Callable[[Findings, str, bool], None]] = {
    "rounding": _rounding, "norm and rounding": _normed, "rms_norm": _rms_norm, "rope": _rope, "gates": _gates, "embedding": _embedding,
    "attention": _attention, "experts": _experts, "forward": forward, "graphs": graphs,
}
