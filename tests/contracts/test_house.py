"""Sizes, light start, and names: rules of the house that a script can check."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import octavo

PACKAGE = Path(octavo.__file__).resolve().parent
ROOT = Path(__file__).resolve().parents[2]


def test_no_file_over_500_lines() -> None:
    sources = [*PACKAGE.rglob("*.py"), *(ROOT / "csrc").rglob("*.cpp"), *(ROOT / "csrc").rglob("*.h"), *(ROOT / "tests").rglob("*.py")]
    long = {str(p): n for p in sources if (n := len(p.read_text().splitlines())) > 500}
    assert not long, f"over 500 lines, split or say why: {long}"


def test_no_room_without_a_subject() -> None:
    vague = {"utils", "helpers", "common", "misc", "util", "helper"}
    assert not [p for p in PACKAGE.rglob("*") if p.stem in vague]


def test_environment_is_read_in_one_place() -> None:
    readers = [p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py") if "os.environ" in p.read_text() or "getenv" in p.read_text()]
    assert readers == [Path("settings.py")]


def test_serving_imports_neither_torch_nor_transformers(tiny_model: Path, tmp_path: Path) -> None:
    """The whole CPU path in a fresh interpreter: load, quantize, generate, build the HTTP app; then look at sys.modules."""
    program = f"""
import sys
from octavo.loading import load
from octavo.engine import Engine, EngineOptions
from octavo.engine.request import Request, Sampling
import octavo.serve.app, octavo.cli
loaded = load({str(tiny_model)!r}, quantization="8bit", cache_dir={str(tmp_path)!r})
engine = Engine(loaded, EngineOptions(max_batch=2))
engine.start()
text = "".join(d.text for d in engine.submit(Request(tuple(loaded.text.encode("Once upon a time")), Sampling(temperature=0, max_tokens=8))))
engine.stop(1.0)
assert text.strip(), "no text came out"
heavy = sorted(m for m in sys.modules if m.split(".")[0] in {{"torch", "transformers", "tensorflow", "jax"}})
print("HEAVY", heavy)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "HEAVY []" in run.stdout


def test_a_second_start_imports_only_what_it_needs(tiny_model: Path, tmp_path: Path) -> None:
    """`octavo generate` on a model that is in the cache: no HTTP stack, no hub, no grammar, no help pages, and the source stays closed."""
    program = f"""
import sys
from octavo.cli import main
assert main(["generate", {str(tiny_model)!r}, "Once upon a time", "--quantization", "4bit", "--max-tokens", "4", "--cache-dir", {str(tmp_path)!r}]) == 0
print("LOADED", *sorted(m for m in sys.modules))
"""
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr
    loaded = set(run.stdout.split("LOADED", 1)[1].split())
    assert "octavo.engine" in loaded and "octavo.checkpoints.octavo" in loaded
    assert not {m.split(".")[0] for m in loaded} & {
        "torch", "transformers", "fastapi", "starlette", "uvicorn", "pydantic", "huggingface_hub", "llguidance", "prometheus_client", "cyclopts", "rich",
        "asyncio", "ssl", "scipy", "safetensors"}
    assert not loaded & {"octavo.checkpoints.gguf", "octavo.kernels.reference", "octavo.serve", "octavo.cli.serve", "octavo.models.gemma3"}
