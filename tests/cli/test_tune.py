"""octavo tune, and the verbs that use what it wrote."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from octavo.cli import main
from octavo.cli._policy import use_policy
from octavo.cli.serve import Options as ServeOptions
from octavo.cli.tune import Options as TuneVerb
from octavo.cli.tune import run
from octavo.loading import fingerprint, load
from octavo.policy import Policy, policy_path, save

BUDGET = "4"


@pytest.fixture
def policies(tiny_model: Path, tmp_path: Path) -> Path:
    """A folder with a policy that sets what one can see: two threads, steps of 64 rows, batches of 3."""
    loaded = load(tiny_model, quantization="4bit", cache_dir=tmp_path / "cache")
    policy = Policy(fingerprint(loaded), threads=1, max_batch_tokens=64, max_batch=3, made="today")
    save(policy_path(tmp_path / "policies", loaded.name, str(loaded.plan)), policy.to_json())
    return tmp_path / "policies"


def test_tune_writes_a_policy_that_generate_uses(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--quantization", "4bit", "--policy-dir", str(tmp_path / "p"), "--cache-dir", str(tmp_path / "c")]
    assert main(["tune", str(tiny_model), "--budget", BUDGET, *common]) == 0
    shown = capsys.readouterr()
    assert "policy search" in shown.out and "chosen" in shown.out and "written: " in shown.err
    (path,) = (tmp_path / "p").iterdir()
    assert json.loads(path.read_text())["format"] == "octavo policy 1"
    assert main(["generate", str(tiny_model), "Once", "--max-tokens", "4", "--raw", *common]) == 0
    assert "policy of 20" in capsys.readouterr().err


def test_tune_against_itself_as_json(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(tiny_model), "--budget", BUDGET, "--against-itself", "--json", "--cache-dir", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kernels"] == [] and found["settings"] == {} and not (tmp_path / "policies").exists()


def test_an_interrupt_says_where_the_measurements_are(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.tune import Progress

    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "played", leave)
    with pytest.raises(KeyboardInterrupt):
        run(TuneVerb(str(tiny_model), policy_dir=tmp_path / "p", cache=False))
    assert f"kept in {tmp_path / 'p'}" in capsys.readouterr().err


@pytest.mark.parametrize("given,threads", [({}, 1), ({"threads": 2}, 2)])
def test_what_is_said_and_applied(tiny_model: Path, tmp_path: Path, policies: Path, given: dict[str, int], threads: int) -> None:
    loaded = load(tiny_model, quantization="4bit", cache_dir=tmp_path / "cache", threads=2)
    policy, told = use_policy(ServeOptions(str(tiny_model), policy_dir=policies, **given), loaded)
    assert policy is not None and policy.settings["max_batch"] == 3
    assert told.startswith("policy of today: ") and "64 rows a step, 3 users a step" in told and ("1 thread" in told) is not bool(given)
    assert loaded.backend.threads == threads


def test_a_stale_policy_is_named_and_not_used(tiny_model: Path, tmp_path: Path, policies: Path) -> None:
    loaded = load(tiny_model, quantization="4bit", kv_cache="int8", cache_dir=tmp_path / "cache")
    policy, told = use_policy(ServeOptions(str(tiny_model), policy_dir=policies), loaded)
    assert policy is None and "stale: cache was bf16, is int8" in told
    searched: list[Path] = []
    use_policy(ServeOptions(str(tiny_model), policy_dir=policies), loaded, searched.append)
    assert searched == [policies]
    assert use_policy(ServeOptions(str(tiny_model)), loaded) == (None, "")


@pytest.mark.parametrize("extra,message", [
    (["tune", "--budget", "0"], "must be above 0"), (["tune", "--allow-kv", "int3"], "no format 'int3'"),
    (["serve", "--search-policy"], "--policy-dir"), (["tune", "--backend", "reference"], "nothing to choose"),
])
def test_what_cannot_be_is_one_line(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str) -> None:
    assert main([extra[0], str(tiny_model), *extra[1:], "--cache-dir", str(tmp_path)]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("octavo: ") and message in err
    logging.getLogger("octavo").setLevel(logging.NOTSET)
