"""The life of a server process: starting, clients that leave, and stopping. The model is the parrot, so that this takes seconds."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo.cli import main
from octavo.cli.serve import plain_name

TESTS = Path(__file__).resolve().parents[1]
Start = Callable[..., tuple["subprocess.Popen[str]", httpx.Client]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a parrot; gives its process and a client, once it is ready unless `wait=False`."""
    running: list[subprocess.Popen[str]] = []

    def begin(pause: float = 0.0, drain: float = 5.0, load: float = 0.0, wait: bool = True) -> tuple[subprocess.Popen[str], httpx.Client]:
        command = [sys.executable, "-m", "serve.parrot_process", str(pause), str(drain), str(load)]
        process = subprocess.Popen(command, cwd=TESTS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment())
        running.append(process)
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port, process.stderr.read() if process.stderr else ""
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        if wait:
            until(lambda: client.get("/health").status_code == 200)
        return process, client

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def _environment() -> dict[str, str]:
    import os

    root = str(TESTS.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, str(TESTS), os.environ.get("PYTHONPATH", "")])}


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.02)


def gauge(client: httpx.Client, name: str) -> float:
    return float(next(line.split()[1] for line in client.get("/metrics").text.splitlines() if line.startswith(f"octavo_{name} ")))


def body(say: str, **more: Any) -> dict[str, Any]:
    return {"model": "parrot", "messages": [{"role": "user", "content": f"«{say}»"}], **more}


def test_it_answers_503_while_it_loads(start: Start) -> None:
    process, client = start(load=1.0, wait=False)
    until(lambda: _answers(client))
    assert client.get("/health").status_code == 503
    refused = client.post("/v1/chat/completions", json=body("x"))
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "starting" and int(refused.headers["retry-after"]) > 0
    until(lambda: client.get("/health").status_code == 200)
    assert client.post("/v1/chat/completions", json=body("x")).json()["choices"][0]["message"]["content"] == "x"
    assert process.poll() is None


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/version").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_loading_ends_it(start: Start, number: signal.Signals) -> None:
    process, client = start(load=60.0, wait=False)
    until(lambda: _answers(client))
    process.send_signal(number)
    assert process.wait(10) == 0


def test_a_model_that_does_not_load_ends_the_server(start: Start) -> None:
    process, _ = start(load=-1.0, wait=False)
    assert process.wait(20) != 0
    assert process.stderr is not None and "it did not load" in process.stderr.read()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_pages(start: Start, stream: bool) -> None:
    _, client = start(pause=0.01)
    host, port = client.base_url.host, client.base_url.port
    content = json.dumps({"model": "parrot", "messages": [{"role": "user", "content": "go on"}], "stream": stream, "max_tokens": 1800}).encode()
    with socket.create_connection((host, port or 0)) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content))
        connection.sendall(content)
        until(lambda: gauge(client, "pages_used") > 1)
        if stream:
            assert b"200 OK" in connection.recv(4096)
    began = time.monotonic()
    until(lambda: gauge(client, "pages_used") == 0 and gauge(client, "num_requests_running") == 0)
    assert time.monotonic() - began < 2, "it went on computing for nobody"
    assert gauge(client, "cancellations_total") == 1


def test_sigterm_finishes_what_runs(start: Start) -> None:
    process, client = start(pause=0.02)
    answers: list[httpx.Response] = []
    users = [threading.Thread(target=lambda s=s: answers.append(client.post("/v1/chat/completions", json=body("a" * 60, stream=s)))) for s in (True, False)]
    for user in users:
        user.start()
    until(lambda: gauge(client, "num_requests_running") == 2)
    process.send_signal(signal.SIGTERM)
    for user in users:
        user.join(20)
    assert sorted(a.status_code for a in answers) == [200, 200]
    assert any(a.text.endswith("data: [DONE]\n\n") for a in answers)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{client.base_url}/health")
    assert process.wait(10) == 0


def test_sigterm_has_a_limit(start: Start) -> None:
    """What does not finish in time ends with an error event, not with a cut connection."""
    process, client = start(pause=0.02, drain=0.5)
    endless = {"model": "parrot", "messages": [{"role": "user", "content": "go on"}], "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=endless) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "stopping"
    assert process.wait(10) == 0


def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    process, client = start(pause=0.02, drain=60)
    with client.stream("POST", "/v1/chat/completions", json=body("a" * 1500, stream=True)) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_busy_port_is_told_before_the_model_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["serve", "/no/such/model", "--port", str(port)]) == 2
    assert f"127.0.0.1:{port}" in (told := capsys.readouterr().err) and "in use" in told and told.count("\n") == 1


def test_a_model_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    assert main(["serve", str(broken), "--port", "0"]) == 2
    assert str(broken) in (told := capsys.readouterr().err) and told.count("\n") == 1


def test_the_name_of_a_model(tmp_path: Path) -> None:
    for name, plain in (("Tiny-1B-Instruct.Q4_K_M.gguf", "Tiny-1B-Instruct"), ("m.BF16.gguf", "m"), ("m-v1.5.gguf", "m-v1.5"), ("folder-7B", "folder-7B")):
        path = tmp_path / name
        path.touch() if name.endswith("gguf") else path.mkdir()
        assert plain_name(str(path)) == plain
    assert plain_name("org/Model-7B") == "org/Model-7B"
