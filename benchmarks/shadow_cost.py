"""What shadow checking costs in throughput: how much slower the steps of a loaded server are while a check runs than just before and after it.

    python benchmarks/shadow_cost.py [--model MODEL] [--quantization 8bit] [--users 16] [--seconds 420] [--control 240]

Every request is offered to the check (--shadow-share 1), so it always has more to do than its budget allows: the most that it can cost. The server notes when
each step ended and how many tokens it made, and when the check's thread computed. A machine whose speed wanders hides 3% from stretches with and without
the check (5 s each: a pair varies by 13 to 20%), but not from neighbouring steps: what a stretch with a check lost is its length less the time in which
its tokens would have been made at the rate of as long a time just before and after. The sum of it over the time of the load is the cost; a bootstrap over the
checks gives the interval. What the check costs while its thread does not compute (keeping the ends of answers) is not in it: microseconds a request. As a
control the same moments are judged in a time without the check. Writes benchmarks/results/shadow.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import report

from octavo.traffic import Closed, Load, Recording, Target, drive, first_model, random_words
from octavo.traffic.client import Client

LEAST = 0.3  # of a stretch's length that must lie free of checks beside it, for it to be judged


def serve(arguments: list[str]) -> NoReturn:
    """`octavo serve` with a switch: a line `on` or `off` on standard input turns the check on or off; each is answered by a line with what was noted since."""
    from octavo.cli import main as octavo
    from octavo.serve import shadow

    on, steps, checks, shadows = threading.Event(), [], [], []

    class Noted(shadow.Allowance):
        @contextlib.contextmanager
        def spending(self, drift: Any) -> Any:
            began = time.monotonic()
            processor = time.thread_time()
            with super().spending(drift):
                yield
            checks.append((began, time.monotonic(), time.thread_time() - processor))

    class Known(shadow.Shadow):
        def start(self, drift: Any, original: Any, served: Any, engine: Any, check: Any) -> None:
            shadows.append(self)
            counter = engine.telemetry.generated_tokens
            add = counter.add

            def noted(amount: float = 1, label: str = "") -> None:
                add(amount, label)
                steps.append((time.monotonic(), amount))

            counter.add = noted
            super().start(drift, original, served, engine, check)

        def offer(self, tickets: Any) -> None:
            if on.is_set():
                super().offer(tickets)

    shadow.Allowance, shadow.Shadow, shadow.SAVED = Noted, Known, 0.02  # type: ignore[misc, assignment]

    def obey() -> None:
        for line in sys.stdin:
            (on.set if line.strip() == "on" else on.clear)()
            print(json.dumps({"state": shadows[0].state if shadows else "none", "now": time.monotonic(), "steps": steps[:], "checks": checks[:]}), flush=True)
            del steps[:], checks[:]

    threading.Thread(target=obey, daemon=True).start()
    code = int(octavo(["serve", *arguments]))
    sys.stdout.flush()
    os._exit(code)  # the switch's thread still waits for a line


class Switch:
    """The server's process and its switch."""

    def __init__(self, command: list[str], port: int) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{port}"

    def turn(self, to: str) -> dict[str, Any]:
        """What was noted since the last turn: steps (time of the end, tokens) and checks (begin, end, processor seconds)."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(to, file=self.process.stdin, flush=True)
        while True:
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit("the server ended")
            if line.startswith('{"state"'):
                return dict(json.loads(line))


def stretches(checks: list[list[float]], apart: float = 0.5) -> list[tuple[float, float]]:
    """Checks less than `apart` seconds apart are one."""
    found: list[tuple[float, float]] = []
    for begin, end, _ in checks:
        if found and begin - found[-1][1] < apart:
            found[-1] = (found[-1][0], end)
        else:
            found.append((begin, end))
    return found


def lost(steps: np.ndarray, during: list[tuple[float, float]]) -> np.ndarray:
    """Seconds that each stretch lost, [stretches, 2] beside the seconds it took. `steps`: [n, 2], when each ended and its tokens."""
    ends, made = steps[:, 0], np.concatenate([[0.0], np.cumsum(steps[:, 1])])

    def tokens(first: int, last: int) -> float:  # of the steps after step `first` up to step `last`
        return float(made[last + 1] - made[first + 1])

    # whole steps: from the last end before a stretch begins to the first after it has ended
    whole = [(int(np.searchsorted(ends, begin, "right")) - 1, int(np.searchsorted(ends, end))) for begin, end in during]
    found = []
    for number, (a, b) in enumerate(whole):
        if a < 0 or b >= len(ends):
            continue
        took = ends[b] - ends[a]
        before = max(int(np.searchsorted(ends, ends[a] - took)), whole[number - 1][1] if number else 0)
        behind = min(int(np.searchsorted(ends, ends[b] + took, "right")) - 1, whole[number + 1][0] if number + 1 < len(whole) else len(ends) - 1)
        free = (ends[a] - ends[before]) + (ends[behind] - ends[b])
        if before >= a or behind <= b or free < LEAST * took:
            continue
        rate = (tokens(before, a) + tokens(b, behind)) / free
        found.append((took - tokens(a, b) / rate, took))
    return np.array(found).reshape(-1, 2)


def cost(noted: dict[str, Any], during: list[tuple[float, float]], seconds: float) -> dict[str, Any]:
    """Share of the time that was lost, with its 95% interval, and what makes it up."""
    steps = np.array(noted["steps"])
    found = lost(steps, during)
    share = len(during) / len(found) / seconds  # stretches that could not be judged lost as much as the others
    dice = np.random.default_rng(0)
    drawn = [float(found[dice.integers(0, len(found), len(found)), 0].sum()) * share for _ in range(4000)]
    return {"seconds": seconds, "stretches": len(during), "judged": len(found), "cost": float(found[:, 0].sum()) * share,
            "low": float(np.percentile(drawn, 2.5)), "high": float(np.percentile(drawn, 97.5)),
            "slower_during": float(found[:, 0].sum() / found[:, 1].sum()), "share_of_time": sum(end - begin for begin, end in during) / seconds,
            "tokens_per_s": float(steps[:, 1].sum()) / seconds, "check_cores": sum(one[2] for one in noted["checks"]) / seconds,
            "scored_per_s": len(noted["checks"]) / 2 / seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="default: the demo model")
    parser.add_argument("--quantization", default="8bit")
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=420.0, help="of load with the check")
    parser.add_argument("--control", type=float, default=240.0, help="seconds of load without it")
    parser.add_argument("--print-only", action="store_true")
    args = parser.parse_args()
    model = args.model or next(iter(sorted((report.ROOT / ".models").rglob("*.gguf"))), None)
    if model is None:
        raise SystemExit("the demo model is missing: run `make serve` once, or name one with --model")
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    switch = Switch([sys.executable, __file__, "--serve", str(model), "--quantization", args.quantization, "--receipt", "before", "--shadow-share", "1",
                     "--port", str(port)], port)
    try:
        while switch.turn("off")["state"] != "checking":
            time.sleep(0.5)
        target = Target(switch.url, "")
        target = Target(switch.url, first_model(target))
        load = threading.Thread(target=users, args=(target, args.users), daemon=True)
        load.start()
        time.sleep(15)
        switch.turn("on")
        time.sleep(10)
        began = switch.turn("on")["now"]
        time.sleep(args.seconds)
        checked = switch.turn("off")
        time.sleep(5)
        later = switch.turn("off")["now"]
        time.sleep(args.control)
        without = switch.turn("off")
    finally:
        switch.process.terminate()
        switch.process.wait(30)
    during = stretches(checked["checks"])
    moments = [(begin - began + later, end - began + later) for begin, end in during if end - began < without["now"] - later]
    stored = {"about": report.circumstances(users=args.users, quantization=args.quantization),
              "check": cost(checked, during, checked["now"] - began), "control": cost(without, moments, without["now"] - later)}
    for name in ("check", "control"):
        one = stored[name]
        print(f"{name}: {one['cost']:+.2%} of the time lost [{one['low']:+.2%}, {one['high']:+.2%}]; {one['judged']} of {one['stretches']} stretches judged, "
              f"{one['share_of_time']:.0%} of the time, {one['slower_during']:+.1%} slower in them; {one['tokens_per_s']:.0f} tokens/s; the check took "
              f"{one['check_cores']:.3f} of a core and scored {one['scored_per_s']:.2f} requests a second")
    if not args.print_only:
        report.save("shadow", stored)
    return 0


def users(target: Target, count: int) -> None:
    """`count` users who never stop asking."""
    import asyncio

    dice = random.Random(0)  # short prompts and long answers of all lengths: users in step would make waves of prompts, and a stretch's rate a matter of phase
    asked = random_words(8, 0, 5000)
    prompts = replace(asked, items=tuple(replace(one, max_tokens=dice.randint(100, 300)) for one in asked.items), ignore_end=True)

    async def ask() -> Recording:
        client = Client(target, prompts.ignore_end)
        try:
            return await drive(client.ask, prompts, Load(Closed(count), duration=36_000.0, warmup=0.0), most=1000, patience=target.timeout)
        finally:
            client.close()

    asyncio.run(ask())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2:])
    sys.exit(main())
