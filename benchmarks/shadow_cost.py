"""What shadow checking costs in tokens per second: one server under one unbroken load, the check switched on and off in turn.

    python benchmarks/shadow_cost.py [--model MODEL] [--quantization 8bit] [--users 16] [--pairs 60] [--seconds 8]

Every request is offered to the check (--shadow-share 1), so it always has more to do than its budget allows: the most that it can cost. Two stretches of
time make a pair, one with the check and one without, in random order; the logarithm of their ratio is what is averaged, and what a pair varies by gives the
interval (Student's t). As a control the same is done with both stretches off. A stretch counts from SETTLE seconds after its switch. Budget that was saved
up while the check was off is not given to it, and it saves none beyond the stretch, so a stretch shows the steady state. Writes
benchmarks/results/shadow.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import report

from octavo.traffic import Closed, Load, Recording, Target, drive, first_model, random_words
from octavo.traffic.client import Client

SETTLE = 1.5


def serve(arguments: list[str]) -> NoReturn:
    """`octavo serve` with a switch: lines `on` and `off` on standard input, each answered by a line of counts at that moment."""
    from octavo.cli import main as octavo
    from octavo.serve import shadow

    on, allowances, shadows = threading.Event(), [], []

    class Switched(shadow.Allowance):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            allowances.append(self)

        def wait(self, check: Any) -> None:
            def gate() -> None:
                check()
                while not on.is_set():
                    check()
                    time.sleep(0.02)
                    self._then = time.monotonic()

            super().wait(gate)

    class Known(shadow.Shadow):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            shadows.append(self)

        def offer(self, tickets: Any) -> None:
            if on.is_set():
                super().offer(tickets)

    shadow.Allowance, shadow.Shadow, shadow.SAVED = Switched, Known, 0.02  # type: ignore[misc, assignment]

    def obey() -> None:
        for line in sys.stdin:
            (on.set if line.strip() == "on" else on.clear)()
            for one in allowances:
                one._then = time.monotonic()
            print(json.dumps({"state": shadows[0].state if shadows else "none"}), flush=True)

    threading.Thread(target=obey, daemon=True).start()
    code = int(octavo(["serve", *arguments]))
    sys.stdout.flush()
    os._exit(code)  # the switch's thread still waits for a line


class Switch:
    """The server's process, its switch and its counters."""

    def __init__(self, command: list[str], port: int) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{port}"

    def turn(self, to: str) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(to, file=self.process.stdin, flush=True)
        while True:
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit("the server ended")
            if line.startswith('{"state"'):
                return str(json.loads(line)["state"])

    def counts(self) -> tuple[float, float, float, float]:
        """Now, tokens generated, processor seconds of the check, requests scored."""
        import urllib.request

        text = urllib.request.urlopen(f"{self.url}/metrics", timeout=30).read().decode()
        now = time.monotonic()

        def total(name: str) -> float:
            return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))

        return now, total("octavo_generation_tokens_total"), total("octavo_shadow_cpu_seconds_total"), total('octavo_shadow_requests_total{outcome="scored"}')

    def stretch(self, to: str, seconds: float) -> dict[str, float]:
        """Tokens a second, share of one core that the check took, requests scored a second."""
        self.turn(to)
        time.sleep(SETTLE)
        first = self.counts()
        time.sleep(seconds)
        last = self.counts()
        took = last[0] - first[0]
        return {"tokens_per_s": (last[1] - first[1]) / took, "check": (last[2] - first[2]) / took, "scored_per_s": (last[3] - first[3]) / took}


def paired(switch: Switch, pairs: int, seconds: float, second: str, dice: random.Random, what: str) -> dict[str, Any]:
    """`second` (on or off) against off."""
    ratios, rates, checks, scored = [], [], [], []
    for number in range(pairs):
        order = ["off", second]
        swapped = dice.random() < 0.5
        if swapped:
            order.reverse()
        found = [switch.stretch(to, seconds) for to in order]
        if swapped:
            found.reverse()
        off, other = found
        ratios.append(math.log(other["tokens_per_s"] / off["tokens_per_s"]))
        rates.append(off["tokens_per_s"])
        checks.append(other["check"])
        scored.append(other["scored_per_s"])
        if sys.stderr.isatty() or number % 10 == 9:
            print(f"{what} {number + 1}: {math.expm1(statistics.fmean(ratios)):+.2%}", file=sys.stderr, flush=True)
    from scipy.stats import t

    mean, half = statistics.fmean(ratios), float(t.ppf(0.975, pairs - 1)) * statistics.stdev(ratios) / math.sqrt(pairs)
    return {"pairs": pairs, "change": math.expm1(mean), "low": math.expm1(mean - half), "high": math.expm1(mean + half),
            "tokens_per_s_off": statistics.median(rates), "check_cores": statistics.fmean(checks),
            "scored_per_s": statistics.fmean(scored), "deviation_of_a_pair": statistics.stdev(ratios)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="default: the demo model")
    parser.add_argument("--quantization", default="8bit")
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--control", type=int, default=20, help="pairs of off and off")
    parser.add_argument("--seconds", type=float, default=8.0)
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
        while switch.turn("off") != "checking":
            time.sleep(0.5)
        target = Target(switch.url, "")
        target = Target(switch.url, first_model(target))
        load = threading.Thread(target=users, args=(target, args.users), daemon=True)
        load.start()
        time.sleep(15)
        dice = random.Random(0)
        results = {"control": paired(switch, args.control, args.seconds, "off", dice, "off against off"),
                   "check": paired(switch, args.pairs, args.seconds, "on", dice, "on against off")}
    finally:
        switch.process.terminate()
        switch.process.wait(30)
    stored = {"about": report.circumstances(users=args.users, seconds=args.seconds, quantization=args.quantization), **results}
    for name, one in results.items():
        print(f"{name}: {one['change']:+.2%} [{one['low']:+.2%}, {one['high']:+.2%}] tokens/s, {one['pairs']} pairs, "
              f"{one['tokens_per_s_off']:.0f} tokens/s without; the check took {one['check_cores']:.3f} of a core and "
              f"scored {one['scored_per_s']:.2f} requests a second")
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
