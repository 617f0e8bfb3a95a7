"""`octavo doctor accuracy`, `speed` and `memory` find each planted cause, with evidence and a command, and do not find it where it was not planted.

Real models of a million parameters; machines are invented where the cause lies in the machine.
"""

from __future__ import annotations

import importlib
import json
import shlex
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from octavo.cli import main
from octavo.cli._app import build, verbs
from octavo.doctor import Complaint, Finding, Report, accuracy, case, memory, speed, topics
from octavo.doctor import race as races
from octavo.doctor.causes.accuracy import layers
from octavo.doctor.causes.memory import measured
from octavo.doctor.causes.speed import where
from octavo.doctor.surroundings import Surroundings, turns
from octavo.doctor.tree import NotAskedError
from octavo.engine import Engine, EngineOptions
from octavo.loading import load
from octavo.machine import detect

MB = 1_000_000
CALM = Complaint(cache=False, threads=1)
DOWN = "model.layers.3.mlp.down_proj.weight"


@pytest.fixture
def original(shared_data: Path) -> Path:
    return shared_data / "models" / "babyllama105-hf"


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    """A copy to be hurt."""
    folder = tmp_path / "model"
    shutil.copytree(original, folder)
    return folder


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tokens: the planted losses are large. And no environment that says how to run."""
    monkeypatch.setattr(case, "WINDOWS", 2)
    monkeypatch.setattr(case.Case, "lacked", None)  # others are invented here: whether they yield is not seen
    for name in ("OCTAVO_ISA", "OCTAVO_THREADS"):
        monkeypatch.delenv(name, raising=False)


def machine(**changes: Any) -> Surroundings:
    """This processor, with one core of its own and nobody else on it."""
    here = replace(detect(), cores=1, memory_total=1000 * MB, memory_available=800 * MB)
    changes = {"machine": here, "processors": 1, "quota": None, "others": 0.0, "memory": 1000 * MB, **changes}
    return Surroundings(**changes)


def one(report: Report, code: str) -> Finding:
    """The finding of that code; what was found instead, where there is none."""
    found = {finding.disorder.code: finding for finding in report.findings}
    assert code in found, (sorted(found), [vars(asked) for asked in report.asked])
    for finding in report.findings:
        can_be_typed(finding.command)
    return found[code]


def can_be_typed(command: str) -> None:
    """The verb takes these options; files that are copied are there."""
    words = shlex.split(command)
    if words[:2] == ["env", "-u"]:
        words = words[3:]
    if words[:1] == ["cp"]:
        assert all(Path(name).exists() for name in words[1:])
    elif words:
        verb = importlib.import_module(verbs()[words[1]]).COMMAND
        build([replace(verb, run=lambda options: 0)])(words[1:], exit_on_error=False, print_error=False, result_action="return_value")


def codes(report: Report) -> set[str]:
    return {finding.disorder.code for finding in report.findings}


def edit(path: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((path / name).read_text())
    change(content)
    (path / name).write_text(json.dumps(content))


def reweigh(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def noisy(tensors: dict[str, np.ndarray]) -> None:
    noise = np.random.default_rng(0).standard_normal(tensors[DOWN].shape).astype(np.float32)
    tensors[DOWN] = tensors[DOWN] + noise * tensors[DOWN].std()


# Accuracy ------------------------------------------------------------------------------------------------------------------------


def test_a_sound_model_is_not_accused(original: Path) -> None:
    report = accuracy.examine(original, replace(CALM, quantization="W8A8C8", against=str(original)), machine())
    assert report.healthy and "loss_is_small" in codes(report) and "lossy_layers" not in codes(report)
    assert all(asked.answered for asked in report.asked[:2])


def test_another_tokenizer(copy: Path, original: Path) -> None:
    def swap(tokenizer: dict[str, Any]) -> None:
        words = tokenizer["model"]["vocab"]
        names = [name for name in words if name.endswith(("e", "t")) and len(name) == 1]
        words[names[0]], words[names[1]] = words[names[1]], words[names[0]]

    edit(copy, "tokenizer.json", swap)
    report = accuracy.examine(copy, replace(CALM, against=str(original)), machine())
    assert "The quick" in one(report, "tokenizer_differs").evidence and not report.healthy
    assert [asked for asked in report.asked if not asked.answered and "tokenizer_differs comes first" in asked.answer]


@pytest.mark.parametrize(("template", "code", "evidence"), [
    ("{% for m in messages %}{{ m.role }", "chat_template_broken", "does not parse"),
    ("{{ raise_exception('roles must alternate') }}", "chat_template_broken", "roles must alternate"),
    ("{% for m in messages[:1] %}<{{ m.role }}> {{ m.content }}{% endfor %}", "chat_template_drops_text", "And the second?"),
    ("{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}", "chat_marks_split", "<|im_end|>"),
])
def test_a_chat_template(template: str, code: str, evidence: str, copy: Path) -> None:
    edit(copy, "tokenizer_config.json", lambda config: config.update(chat_template=template))
    assert evidence in one(accuracy.examine(copy, CALM, machine()), code).evidence


def test_a_chat_template_unlike_the_originals(copy: Path, original: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "theirs")
    template = "{% for m in messages %}MARK{{ m.role }} {{ m.content }}{% endfor %}"
    for folder, mark in ((copy, "# "), (tmp_path / "theirs", "> ")):
        edit(folder, "tokenizer_config.json", lambda config, mark=mark: config.update(chat_template=template.replace("MARK", mark)))  # type: ignore[misc]
    report = accuracy.examine(copy, replace(CALM, against=str(tmp_path / "theirs")), machine())
    found = one(report, "chat_template_differs")
    assert "here '# user" in found.evidence and found.command == f"cp {tmp_path / 'theirs' / 'tokenizer_config.json'} {copy}"


def test_no_token_ends_an_answer(copy: Path) -> None:
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        if (copy / name).exists():
            edit(copy, name, lambda config: [config.pop(key, None) for key in ("eos_token_id", "eos_token")])
    assert "names one" in one(accuracy.examine(copy, CALM, machine()), "no_end_token").evidence


def test_a_tokenizer_that_loses_text(copy: Path) -> None:
    edit(copy, "tokenizer.json", lambda tokenizer: tokenizer.update(normalizer={"type": "Lowercase"}))
    assert "comes back as 'thequick" in one(accuracy.examine(copy, CALM, machine()), "tokenizer_loses_text").evidence


def test_tokens_that_the_model_does_not_have(copy: Path) -> None:
    edit(copy, "tokenizer.json", lambda tokenizer: tokenizer["model"]["vocab"].update(e=100_000))
    assert "token 100000" in one(accuracy.examine(copy, CALM, machine()), "token_beyond_vocabulary").evidence


def test_output_that_is_no_number(copy: Path, original: Path) -> None:
    reweigh(copy, lambda tensors: tensors["model.norm.weight"].fill(3e38))
    report = accuracy.examine(copy, replace(CALM, against=str(original)), machine())
    assert "tokens" in one(report, "no_numbers").evidence and not report.healthy


def test_a_chat_template_that_was_lost(copy: Path, original: Path) -> None:
    edit(copy, "tokenizer_config.json", lambda config: config.update(chat_template="{% for m in messages %}{{ m.content }}{% endfor %}"))
    report = accuracy.examine(original, replace(CALM, against=str(copy)), machine())
    assert one(report, "chat_template_lost") and not report.healthy


def test_damaged_weights_in_one_place(copy: Path, original: Path) -> None:
    reweigh(copy, lambda tensors: tensors.update({DOWN: np.zeros_like(tensors[DOWN])}))
    report = accuracy.examine(copy, replace(CALM, against=str(original)), machine())
    assert one(report, "damaged_checkpoint").command == f"octavo doctor checkpoint {copy}" and DOWN in one(report, "damaged_checkpoint").tensor
    assert one(report, "lossy_layers").tensor == "layer 3"


def test_weights_that_cannot_be_loaded_are_still_named(copy: Path) -> None:
    reweigh(copy, lambda tensors: tensors[DOWN].__setitem__((1, 2), np.nan))
    report = accuracy.examine(copy, CALM, machine())
    assert DOWN in one(report, "damaged_checkpoint").tensor and not report.asked[-1].answered


def test_one_layer_that_loses(copy: Path, original: Path) -> None:
    reweigh(copy, noisy)
    report = accuracy.examine(copy, replace(CALM, quantization="W8A16", against=str(original)), machine())
    found = one(report, "lossy_layers")
    assert one(report, "loss_is_large") and not report.healthy
    assert found.tensor == "layer 3" and "*.layers.3.*=keep" in found.command and found.command.startswith(f"octavo quantize {original} ")


def test_too_few_bits(original: Path) -> None:
    report = accuracy.examine(original, replace(CALM, quantization="W3g32A16", against=str(original)), machine())
    found = one(report, "too_few_bits")
    assert "--quantization 'W8g64A16C16" in found.command and "; W4g32A16C16 0." in found.evidence  # 4 bits were tried, too
    assert report.facts["kl"] > 0.02 and "lossy_layers" not in codes(report)


def test_inputs_with_outliers(copy: Path) -> None:
    """One channel of a norm is made three hundred times as large and the columns that read it smaller: the same function."""
    def grow(tensors: dict[str, np.ndarray]) -> None:
        for layer in range(5):
            at = f"model.layers.{layer}"
            for norm, readers in ((f"{at}.input_layernorm.weight", [f"{at}.self_attn.{p}_proj.weight" for p in "qkv"]),
                                  (f"{at}.post_attention_layernorm.weight", [f"{at}.mlp.{p}_proj.weight" for p in ("gate", "up")])):
                tensors[norm][7] *= 300
                for reader in readers:
                    tensors[reader][:, 7] /= 300

    reweigh(copy, grow)
    report = accuracy.examine(copy, replace(CALM, quantization="W8g32A8", against=str(copy)), machine())
    found = one(report, "activation_outliers")
    assert "--quantization W8g32A16" in found.command and "times the median one" in found.evidence


def test_layers_are_not_accused_of_what_inputs_lose(original: Path) -> None:
    losing = case.Case(original, replace(CALM, quantization="W8A16", against=str(original)), machine())
    losing.comparison, losing.input_loss = SimpleNamespace(kl=SimpleNamespace(value=0.0525)), 0.0468  # type: ignore[assignment]  # SmolLM2 as W8A8
    with pytest.raises(NotAskedError, match="from inputs, not from weights"):
        layers.look(losing)


def test_a_cache_of_too_few_bits(original: Path) -> None:
    report = accuracy.examine(original, replace(CALM, kv_cache="int4"), machine())
    assert "--kv-cache int8" in one(report, "cache_too_narrow").command
    assert "cache_too_narrow" not in codes(accuracy.examine(original, replace(CALM, kv_cache="int8"), machine()))


def test_calibration_text_unlike_the_traffic(shared_data: Path, tmp_path: Path) -> None:
    stories = (shared_data / "text" / "tinystories-a.jsonl").read_text().splitlines()[:60]
    traffic, data, alike = (tmp_path / name for name in ("traffic.jsonl", "calibration.jsonl", "alike.jsonl"))
    traffic.write_text("\n".join(stories[:30]))
    alike.write_text("\n".join(stories[30:]))
    data.write_text("\n".join(json.dumps(f"SELECT c{i}, {i * 37} FROM t_{i % 7} WHERE (x{i} > {i}) AND y != '{i:05d}';") for i in range(400)))
    model = shared_data / "models" / "stories260k-hf"
    said = replace(CALM, data=data, traffic=traffic)
    found = one(accuracy.examine(model, said, machine()), "calibration_unlike_traffic")
    assert f"--data {traffic}" in found.command and "between halves of the traffic" in found.evidence
    assert "calibration_unlike_traffic" not in codes(accuracy.examine(model, replace(said, data=alike), machine()))


# Speed ---------------------------------------------------------------------------------------------------------------------------


def test_a_model_that_runs_as_it_should(original: Path) -> None:
    report = speed.examine(original, replace(CALM, quantization="W4g32A8"), machine())
    assert report.healthy, [finding.to_json() for finding in report.findings]
    assert report.facts["tokens per second"] > 0 and "linear" in next(one.answer for one in report.asked if "time of a step" in one.question)


PROCESSOR = replace(detect(), cores=1)


@pytest.mark.parametrize(("code", "said", "around", "command"), [
    ("not_quantized", {}, {}, "--quantization 4bit"),
    ("emulated_format", {"quantization": "W4g2A16"}, {}, "--quantization 4bit"),
    ("inputs_not_as_asked", {"quantization": "W4g32Afp8"}, {}, "--quantization W4g32A8"),
    ("fallback_kernels", {"isa": "portable"}, {"machine": replace(PROCESSOR, isas=("avx2", "portable"))}, "octavo serve MODEL --quantization W4g32A8 --thr"),
    ("no_vector_kernels", {"isa": "portable"}, {"machine": replace(PROCESSOR, isas=("portable",), features=frozenset(), cpu="old")}, ""),
    ("reference_backend", {"backend": "reference"}, {}, "octavo serve MODEL"),
    ("more_threads_than_cores", {"threads": 99}, {"machine": detect(), "processors": 64}, "octavo serve MODEL --quantization W4g32A8"),
    ("too_few_threads", {}, {"machine": replace(PROCESSOR, cores=4), "processors": 4}, "octavo serve MODEL --quantization W4g32A8"),
    ("cores_withheld", {}, {"processors": 8, "quota": 1.0}, ""),
    ("quota_not_whole", {}, {"machine": replace(PROCESSOR, cores=2), "processors": 8, "quota": 1.5}, "--threads 1"),
    ("other_load", {}, {"machine": replace(PROCESSOR, cores=2), "processors": 2, "others": 1.4}, "--threads 1"),
])
def test_speed(code: str, said: dict[str, Any], around: dict[str, Any], command: str, original: Path) -> None:
    quantization = None if code == "not_quantized" else "W4g32A8"
    report = speed.examine(original, replace(CALM, **{"quantization": quantization, **said}), machine(**around))
    assert command.replace("MODEL", str(original)) in one(report, code).command and one(report, code).evidence


@pytest.mark.parametrize(("lacked", "found"), [(0.0, False), (0.3, True)])
def test_others_that_yield_are_not_accused(lacked: float, found: bool, original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case.Case, "lacked", lacked)
    report = speed.examine(original, replace(CALM, quantization="W4g32A8"), machine(others=0.9))
    assert ("other_load" in codes(report)) is found


def test_threads_that_lack_a_core_are_seen(original: Path) -> None:
    before = turns()
    other = threading.Thread(target=lambda: sum(range(300_000)))
    other.start()
    other.join()
    after = turns()
    assert before is None or after is None or after[0] > before[0]


def test_a_stale_policy(original: Path, tmp_path: Path) -> None:
    from octavo.loading import fingerprint
    from octavo.policy import Policy, policy_path, save

    said = replace(CALM, quantization="W4g32A8", policy_dir=tmp_path)
    loaded = load(original, quantization="W4g32A8", use_cache=False, threads=1)
    path, now = policy_path(tmp_path, loaded.name, str(loaded.plan)), fingerprint(loaded)
    assert one(speed.examine(original, said, machine()), "no_policy")
    save(path, Policy({**now, "cpu": "another"}, made="then").to_json())
    found = one(speed.examine(original, said, machine()), "stale_policy")
    assert "cpu was another" in found.evidence and found.command == f"octavo tune {original} --quantization W4g32A8 --threads 1 --policy-dir {tmp_path}"
    save(path, Policy(now, made="now").to_json())
    assert not codes(speed.examine(original, said, machine())) & {"stale_policy", "no_policy"}


@pytest.mark.parametrize(("code", "part", "others", "helps", "command"), [
    ("attention_bound", "attention", 0.0, 2.0, "--kv-cache int8"),
    ("attention_bound", "attention", 0.0, 1.0, ""),
    ("time_outside_kernels", "outside kernels", 0.0, 1.0, ""),
    ("threads_wait", "waiting", 0.0, 2.0, "--threads 1"),
    ("threads_wait", "waiting", 0.0, 0.9, ""),
    ("", "waiting", 1.0, 1.0, ""),
])
def test_where_the_time_goes(code: str, part: str, others: float, helps: float, command: str, original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that no busy machine can change. Waiting has another cause where others use the cores. What does not help is not advised."""
    raced: list[Any] = []

    def race(theirs: Any, ours: Any, users: int, context: int | None) -> races.Race:
        raced.append(ours)
        return races.Race([100.0], [100.0 * helps])

    monkeypatch.setattr(where, "race", race)
    monkeypatch.setattr(where, "native_program", lambda loaded: SimpleNamespace(threads=2))
    monkeypatch.setattr(where, "seconds_by_part", lambda loaded, steps: {"linear": 1.0, part: 2.0})
    report = speed.examine(original, replace(CALM, quantization="W4g32A8"), machine(others=others))
    found = report.findings[0]
    assert codes(report) == {code or "other_load"} and command in found.command and (not raced or bool(found.command) == bool(command))
    if raced:
        assert f"it is {helps:.2f} times as fast" in found.evidence
        assert raced[0].cache_spec.format == "int8" if part == "attention" else raced[0].backend.threads == 1
    assert f"{part} 67%, linear 33%" in report.asked[-2].answer


@pytest.mark.parametrize(("times", "found"), [(1.0, True), (2.0, False)])
def test_no_gain(times: float, found: bool, original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(model: Any, users: int, context: int, new: int) -> list[SimpleNamespace]:
        return [SimpleNamespace(seconds=0.01 / (times if model.plan.default.weight.quantized else 1))] * new

    monkeypatch.setattr(races, "decode", decode)
    report = speed.examine(original, replace(CALM, quantization="W4g32A8", against=str(original)), machine())
    assert ("no_gain" in codes(report)) is found and f"{times:.2f} times as fast" in report.asked[-1].answer


# Memory --------------------------------------------------------------------------------------------------------------------------


def small(megabytes: float, **changes: Any) -> Surroundings:
    size = int(megabytes * MB)
    return machine(machine=replace(PROCESSOR, memory_total=size, memory_available=size), **{"memory": size, **changes})


@pytest.mark.parametrize(("code", "said", "around", "command"), [
    ("weights_unquantized", {"context": 64, "prefix_cache": False}, small(1000), "--quantization 4bit"),
    ("weights_widened", {"quantization": "W4g2A16", "context": 64, "prefix_cache": False}, small(1000), "--quantization 4bit"),
    ("cache_unquantized", {"users": 20}, small(1000), "--kv-cache int8"),
    ("cache_fills_memory", {"users": 40, "kv_cache": "int8", "prefix_cache": False}, small(1000), "--max-batch 20"),
    ("does_not_fit", {"users": 100, "kv_memory_mb": 60}, small(40), ""),
    ("memory_limited", {"users": 20, "kv_memory_mb": 20, "prefix_cache": False}, small(25, memory=4000 * MB), ""),
    ("context_reserved", {"users": 10, "context": 30}, small(200), "--max-model-len 32 --threads 1 --kv-memory-mb 2"),
    ("prefix_cache_holds", {"users": 4, "context": 64, "kv_memory_mb": 80}, small(30), "--no-prefix-cache"),
    ("original_held", {"quantization": "W4g32A8", "shadow": True, "context": 64, "prefix_cache": False}, small(1000), "--shadow-share 0 --receipt off"),
    ("pool_too_small", {"users": 30, "kv_memory_mb": 2}, small(1000), "--kv-memory-mb"),
])
def test_memory(code: str, said: dict[str, Any], around: Surroundings, command: str, original: Path) -> None:
    report = memory.examine(original, replace(CALM, **said), around)
    found = one(report, code)
    assert command in found.command and " MB" in found.evidence
    assert report.healthy == (code != "does_not_fit")


@pytest.mark.parametrize(("code", "loaded", "computed", "command"), [
    ("more_than_foreseen", 300, 0, ""),
    ("step_buffers_hold", 2, 60, "--max-batch-tokens 128"),
])
def test_memory_that_is_held_in_fact(code: str, loaded: int, computed: int, command: str, original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([100 * MB, (100 + loaded) * MB, (100 + loaded + computed) * MB])
    monkeypatch.setattr(measured, "resident", lambda: next(held))
    report = memory.examine(original, replace(CALM, context=64, quantization="W4g32A8", prefix_cache=False), small(1000))
    assert command in one(report, code).command and f"took {loaded}.0 MB" in one(report, code).evidence and report.facts["measured MB"] == loaded


def test_no_room_for_a_cache(original: Path) -> None:
    report = memory.examine(original, CALM, small(2))
    assert "nothing is left" in one(report, "does_not_fit").evidence and not report.healthy


def test_what_was_foreseen_is_what_an_engine_takes(original: Path) -> None:
    loaded = load(original, use_cache=False, threads=1)
    for options in (EngineOptions(max_batch=128, kv_memory=3 * MB), EngineOptions(max_batch=5)):
        with Engine(loaded, options) as engine:
            said = replace(CALM, max_batch=options.max_batch, kv_memory_mb=options.kv_memory and 3)
            assert case.Case(original, said, small(8000)).holders.pool == engine.kv_bytes


def test_little_of_everything_is_no_cause(original: Path) -> None:
    report = memory.examine(original, replace(CALM, quantization="W4g32A8C8", users=2, context=64), small(1000))
    assert not report.findings and report.facts["free MB"] == 1000


def test_every_cause_is_planted_here() -> None:
    source = Path(__file__).read_text()
    known = {disorder.code for topic in ("accuracy", "speed", "memory") for disorder in topics()[topic].disorders()}
    assert len(known) > 12 and not {code for code in known if f'"{code}"' not in source}


# The command ---------------------------------------------------------------------------------------------------------------------


def test_the_command_prints_what_was_asked_and_what_mends_it(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "memory", str(original), "--users", "50", "--no-cache"]) == 0
    text = capsys.readouterr().out
    assert "does it fit? yes" in text and f"run: octavo serve {original} --kv-cache int8" in text
    assert main(["doctor", "speed", str(original), "--no-cache", "--threads", "1", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["healthy"] and report["asked"][0]["question"] == "is it really quantized?"
    assert next(found["command"] for found in report["findings"] if found["code"] == "not_quantized").endswith("--quantization 4bit --threads 1")


@pytest.mark.parametrize(("line", "says"), [
    (["checkpoint", "MODEL", "--users", "3"], "--users: means nothing to `octavo doctor checkpoint`"),
    (["memory", "MODEL", "--traffic", "x.jsonl"], "--traffic: means nothing"),
    (["speed", "MODEL", "--users", "0"], "--users: must be above 0"),
    (["memory", "MODEL", "--context", "100000"], "100000 tokens are beyond the 256"),
    (["accuracy", "/nowhere"], "no such file or folder"),
    (["accuracy", "MODEL", "--against", "/nowhere"], "no such file or folder"),
    (["accuracy", "MODEL", "--against", "STORIES"], "it is not the original"),
    (["accuracy", "MODEL", "--data", "/nowhere.jsonl", "--traffic", "/nowhere.jsonl"], "/nowhere.jsonl"),
])
def test_refusals(line: list[str], says: str, original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"MODEL": str(original), "STORIES": str(original.parent / "stories260k-hf")}
    assert main(["doctor", *(places.get(word, word) for word in line)]) == 2
    assert says in capsys.readouterr().err
