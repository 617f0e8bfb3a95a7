"""A mixed search that is killed, what bounds it, what it refuses at once, and what its receipt says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from octavo.cli import main
from octavo.errors import UsageError
from octavo.quality.own_text import OWN_TEXT
from octavo.quality.receipt import beside, read_receipt
from octavo.quantize import Wish
from octavo.quantize.mixed import Outcome, quantize_mixed
from octavo.quantize.search import Goal

NAMES = ("W3g16", "W4g16", "W6g16", "W8g16")
KEEP = ("*embed*", "*self_attn*", "model.layers.[0-2].*")  # few weights, so that it is quick
Tell = Callable[[int, int, float], None]


@pytest.fixture(scope="module")
def wish(shared_data: Path) -> Wish:
    return Wish("W4", "rtn", data=shared_data / "text" / "tinystories-a.jsonl", sequences=8, tokens=64, keep=KEEP)


class Killed(BaseException):
    """As a signal would end it."""


def killed_in(call: int) -> Tell:
    calls = iter(range(call + 1))

    def tell(done: int, of: int, seconds: float) -> None:
        if next(calls) == call:
            raise Killed

    return tell


def never(done: int, of: int, seconds: float) -> None:
    raise AssertionError("sensitivities were measured a second time")


def files_of(folder: Path) -> dict[str, bytes]:
    """Weights and configuration; the others have times in them."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in ("model.safetensors", "config.json")}


def search(source: Path, out: Path, wish: Wish, on_measured: Tell | None = None, on_progress: Tell | None = None) -> Outcome:
    return quantize_mixed(source, out, wish, Goal(kl=0.02), NAMES, threads=1, receipt_text=OWN_TEXT, on_measured=on_measured, on_progress=on_progress)


def test_killed_it_leaves_nothing_and_goes_on(tiny_model: Path, wish: Wish, tmp_path: Path) -> None:
    whole = search(tiny_model, tmp_path / "whole", wish)
    assert whole.trial.receipt is not None and whole.trial.worst <= 0.02
    assert len(whole.tried) > 1, "the goal takes more than one plan, else nothing is tested here"
    out, layers = tmp_path / "out", 5
    for place, measured in ((layers - 2, None), (layers + 1, never)):  # in the first plan; then, with that finished, in the second
        with pytest.raises(Killed):
            search(tiny_model, out, wish, measured, killed_in(place))
        assert not out.exists()
        assert [path.name for path in tmp_path.glob(".out*")] == [".out.octavo-search"]
    again = search(tiny_model, out, wish, never)
    assert files_of(out) == files_of(tmp_path / "whole")
    assert [trial.to_json() for trial in again.tried] == [trial.to_json() for trial in whole.tried]
    assert not list(tmp_path.glob(".out*"))
    assert again.report.written.out == str(out)
    assert again.report.samples == "tinystories-a.jsonl" and not again.report.notes
    assert {"octavo-plan.json", "octavo-front.svg", "octavo-receipt.json"} <= {path.name for path in out.iterdir()}


def test_the_bound_holds_for_the_receipt_which_says_what_was_searched(tiny_model: Path, wish: Wish, tmp_path: Path) -> None:
    out, goal = tmp_path / "out", Goal(kl=0.02)
    outcome = quantize_mixed(tiny_model, out, wish, goal, NAMES, threads=1, receipt_text=OWN_TEXT)
    receipt = read_receipt(beside(out))
    assert receipt is not None
    receipt.refuse_above(0.02, str(out))  # as `serve OUT --max-kl 0.02` does
    first = outcome.tried[0]
    assert first.measured <= 0.02 and first.receipt is not None and first.receipt > 0.02, "else held-out text alone would have found the same"
    assert max(outcome.measured, receipt.kl) == outcome.trial.worst <= 0.02
    assert receipt.calibration is not None and receipt.calibration["name"] == "tinystories-a.jsonl" and receipt.calibration["sha256"]
    said = receipt.settings["search"]
    assert said["goal"] == {"kl": 0.02, "minimize": "size"}
    assert said["measured_kl"] == outcome.measured and said["candidates"] == list(NAMES)
    plan = json.loads((out / "octavo-plan.json").read_text(encoding="utf-8"))["search"]
    assert plan["receipt_kl"] == receipt.kl and plan["plan_file"] == str(out / "octavo-plan.json")


def test_rounded_inputs_are_chosen_where_work_is_to_be_small(tiny_model: Path, wish: Wish, tmp_path: Path) -> None:
    names = ("W4g16", "W4g16A8", "W8g16", "W8g16A8")
    work = quantize_mixed(tiny_model, tmp_path / "work", wish, Goal(kl=0.005, minimize="work"), names, threads=1)
    size = work.search.choose(Goal(kl=0.005))
    assert work.measured <= 0.005
    assert work.search.work(work.solution) < 10
    assert work.search.work(size) == 16, "as many bytes, and more loss: no goal of size takes them"
    config = json.loads((tmp_path / "work" / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    assert any(group["input_activations"] for group in config["config_groups"].values())


@pytest.mark.parametrize(("goal", "names", "to", "said"), [
    (Goal(size=1000), NAMES, "compressed-tensors", r"0\.001 MB for all tensors.*it takes at least 0\.\d+ MB"),
    (Goal(bits=2.25), NAMES, "compressed-tensors", r"2\.25 bits per weight.*it takes at least 3\.\d+"),
    (Goal(bits=5), NAMES, "gptq", "gptq cannot hold"),
    (Goal(bits=2.25), ("Wtcq2", "Wtcq3"), "octavo", "rtn does not round to Wtcq2"),
])
def test_refused_before_anything_is_measured(tiny_model: Path, wish: Wish, tmp_path: Path, goal: Goal, names: tuple[str, ...], to: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        quantize_mixed(tiny_model, tmp_path / "out", wish, goal, names, to=to, on_measured=never)
    assert len(str(refused.value)) < 400
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_what_a_search_does_not_take(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, said in ((["--target-bits", "4.5", "--scheme", "W4g32C8"], "W4g32C8 does so, too. beside --target-bits"),
                          (["--candidates", "W4,W8"], "give a goal"), (["--target-bits", "4", "--minimize", "work"], "give --max-kl")):
        assert main(["quantize", str(tiny_model), str(tmp_path / "out"), "--data", "none.txt", *options]) == 2
        assert said in capsys.readouterr().err
