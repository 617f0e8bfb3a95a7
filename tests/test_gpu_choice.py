"""Which precision a preset means on each generation of GPUs, what a GPU refuses, and which device runs a model: on machines that are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo import machine as machines
from octavo.errors import OctavoError, SchemeError, UsageError
from octavo.loading import _choices, load
from octavo.machine import Gpu, Machine
from octavo.schemes import choose

V100, T4 = Gpu("Tesla V100-SXM2-16GB", (7, 0), 16 << 30, 15 << 30), Gpu("Tesla T4", (7, 5), 16 << 30, 15 << 30)
A100, A10 = Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 80 << 30, 79 << 30), Gpu("NVIDIA A10G", (8, 6), 24 << 30, 22 << 30)
L4, RTX4090 = Gpu("NVIDIA L4", (8, 9), 24 << 30, 22 << 30), Gpu("NVIDIA GeForce RTX 4090", (8, 9), 24 << 30, 23 << 30)
H100, B200 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 80 << 30, 79 << 30), Gpu("NVIDIA B200", (10, 0), 180 << 30, 178 << 30)
RTX5090 = Gpu("NVIDIA GeForce RTX 5090", (12, 0), 32 << 30, 31 << 30)
ORIN, B300 = Gpu("Orin", (8, 7), 32 << 30, 30 << 30), Gpu("NVIDIA B300", (10, 3), 288 << 30, 280 << 30)


def faked(gpu: Gpu) -> Machine:
    return Machine(frozenset({"avx2"}), ("avx2", "portable"), "avx2", 8, 64 << 30, 60 << 30, "a processor", (gpu,))


@pytest.mark.parametrize(("gpu", "eight", "four"), [
    (V100, "W8A16C16", "W4A16C16"), (T4, "W8A8C16", "W4A16C16"), (A100, "W8A8C16", "W4A16C16"), (A10, "W8A8C16", "W4A16C16"),
    (L4, "Wfp8Afp8C16", "W4A16C16"), (RTX4090, "Wfp8Afp8C16", "W4A16C16"), (H100, "Wfp8Afp8C16", "W4Afp8C16"),
    (ORIN, "W8A8C16", "W4A16C16"), (B300, "Wfp8Afp8C16", "Wnvfp4Anvfp4C16"),
    (B200, "Wfp8Afp8C16", "Wnvfp4Anvfp4C16"), (RTX5090, "Wfp8Afp8C16", "Wnvfp4Anvfp4C16"),
], ids=lambda one: one.name if isinstance(one, Gpu) else None)
def test_presets_on_each_generation(gpu: Gpu, eight: str, four: str) -> None:
    machine = faked(gpu)
    for preset, wanted in (("16bit", "W16A16C16"), ("32bit", "W32A32C32"), ("8bit", eight), ("4bit", four)):
        choice = choose(preset, machine, machine.gpus[0].capability)
        assert str(choice.plan.default) == wanted and choice.reason and "avx2" not in choice.reason


@pytest.mark.parametrize(("gpu", "name", "reason", "instead"), [
    (V100, "W8A8", "Turing", "W8A16"), (V100, "Wfp8Afp8", "Ada", "W8A16"), (T4, "Wfp8Afp8", "Ada", "W8A8"), (A100, "FP8_BLOCK", "Ada", "W8A8"),
    (A100, "NVFP4", "Blackwell", "Wnvfp4A16"), (RTX4090, "MXFP4", "Blackwell", "Wmxfp4A16"), (H100, "NVFP4", "Blackwell", "Wnvfp4A16"),
    (H100, "MXFP8", "Blackwell", "Wfp8Afp8"),
], ids=lambda one: one.name if isinstance(one, Gpu) else None)
def test_refusals_say_why_and_what_works(gpu: Gpu, name: str, reason: str, instead: str) -> None:
    with pytest.raises(SchemeError) as caught:
        choose(name, faked(gpu), gpu.capability)
    assert reason in str(caught.value) and f"{gpu.capability[0]}.{gpu.capability[1]}" in str(caught.value)
    assert str(choose(instead, faked(gpu), gpu.capability).plan.default).startswith(instead)


@pytest.mark.parametrize(("gpu", "names"), [(T4, ("W8A8", "W4A16", "Wfp8A16")), (L4, ("FP8_BLOCK", "W8A8")), (H100, ("FP8_DYNAMIC", "W4Afp8", "Wmxfp4A16")),
                                            (B200, ("NVFP4", "MXFP4", "MXFP8"))], ids=lambda one: one.name if isinstance(one, Gpu) else None)
def test_what_a_gpu_has_is_not_refused(gpu: Gpu, names: tuple[str, ...]) -> None:
    assert all(choose(name, faked(gpu), gpu.capability).plan for name in names)


def test_devices_choose_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(*gpus: Gpu, shown: bool = True, installed: bool = True) -> None:
        monkeypatch.setattr(_choices, "shows_gpu", lambda: shown)
        monkeypatch.setattr(_choices, "find_gpus", lambda: gpus)
        monkeypatch.setattr(_choices, "find_spec", lambda name: object() if installed else None)

    here(H100)
    assert [_choices.backend_on(device, "native") for device in (None, "cpu", "cuda", "auto")] == ["native", "native", "triton", "triton"]
    assert _choices.backend_on("auto", "reference") == "reference" and _choices.backend_on(None, "triton") == "triton"
    here(T4)
    assert _choices.backend_on("auto", "native") == "native"
    here(H100, installed=False)
    assert _choices.backend_on("auto", "native") == "native"
    monkeypatch.setattr(_choices, "find_gpus", lambda: pytest.fail("torch was asked although the system shows no GPU"))
    monkeypatch.setattr(_choices, "shows_gpu", lambda: False)
    assert _choices.backend_on("auto", "native") == "native"
    with pytest.raises(UsageError, match="auto, cpu, cuda"):
        _choices.backend_on("tpu", "native")
    with pytest.raises(UsageError, match="reference"):
        _choices.backend_on("cuda", "reference")


def test_why_a_gpu_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` on the CPU beside a GPU says why."""
    def said(*gpus: Gpu, shown: bool = True, missing: tuple[str, ...] = (), device: str | None = "auto") -> str:
        monkeypatch.setattr(_choices, "shows_gpu", lambda: shown)
        monkeypatch.setattr(_choices, "find_gpus", lambda: gpus)
        monkeypatch.setattr(_choices, "find_spec", lambda name: None if name in missing else object())
        return _choices.why_not_there(device, "native")

    assert "Tesla T4 has compute capability 7.5" in said(T4) and "8.0" in said(V100) and "Triton" in said(V100)
    assert "triton" in said(H100, missing=("triton",)) and "octavo[gpu]" in said(H100, missing=("torch", "triton"))
    assert "torch finds no" in said()
    assert said(T4, shown=False) == said(T4, device="cpu") == said(T4, device=None) == ""
    assert _choices.why_not_there("auto", "triton") == ""


def test_a_gpu_shows_in_dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "DEVICES", tmp_path)
    assert not machines.shows_gpu()
    (tmp_path / "nvidiactl").touch()
    assert not machines.shows_gpu()
    (tmp_path / "nvidia0").touch()
    assert machines.shows_gpu()


def test_asking_for_a_gpu_that_is_not_there_is_one_clear_line(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    if importlib.util.find_spec("triton") is not None:
        from octavo.kernels.triton import ops

        monkeypatch.setattr(ops, "INTERPRETED", False)
        monkeypatch.setattr(ops.torch.cuda, "is_available", lambda: False)
    with pytest.raises(OctavoError, match=r"GPU|triton") as caught:
        load(tiny_model, device="cuda", use_cache=False)
    assert caught.value.remedy and "--device cpu" in caught.value.remedy
