"""Plain command lines mean what cyclopts makes of them; every other line is left to it."""

from __future__ import annotations

import importlib
import random

import pytest

from octavo.cli import Command, _app
from octavo.cli._plain import read

COMMANDS = {name: importlib.import_module(module).COMMAND for name, module in _app.verbs().items()}


def by_cyclopts(command: Command, tokens: list[str]) -> object:
    seen: list[object] = []

    def run(options: object) -> None:
        """Note what was read."""
        seen.append(options)

    _app.build([Command(command.name, command.options, run)])([command.name, *tokens], exit_on_error=False, print_error=False, result_action="return_value")
    return seen[0]


@pytest.mark.parametrize("tokens", [
    ["m"], ["m", "a prompt"], ["m", ""], ["--model", "m", "--prompt=a = b"], ["m", "p", "--threads", "2", "--no-cache", "--cache-dir", "a/b"],
    ["m", "--temperature", "1"], ["m", "--temperature=0.25", "--seed", "007", "--json"], ["--no-stream", "m", "--raw", "p"], ["m", "é\n—"],
    ["m", "p", "--max-tokens", "0"], ["m", "--quantization", "W4g64A8"],
])
def test_generate(tokens: list[str]) -> None:
    plain = read(COMMANDS["generate"].options, tokens)
    assert plain is None or plain == by_cyclopts(COMMANDS["generate"], tokens)
    assert (plain is None) == ("" in tokens)


@pytest.mark.parametrize("tokens", [
    [], ["--help"], ["m", "-h"], ["m", "--no-such"], ["m", "p", "q"], ["m", "--threads"], ["m", "--threads", "many"], ["m", "--threads", "-1"],
    ["m", "--seed", "1", "--seed", "2"], ["m", "--stop", "a"], ["m", "--json=true"], ["m", "--temperature", "-1"], ["m", "--raw", "--no-raw"], ["--", "m"],
    ["--model", "m", "p"], ["m", "--temperature", "1e3"], ["m", "--seed", "1_000"], ["m", "--max_tokens", "3"],
])
def test_what_is_not_plain_is_left_alone(tokens: list[str]) -> None:
    assert read(COMMANDS["generate"].options, tokens) is None


def test_random_lines_of_every_verb() -> None:
    draw = random.Random(5)
    agreed = 0
    for name, command in COMMANDS.items():
        fields = list(command.options.__dataclass_fields__)
        for _ in range(60):
            tokens = [draw.choice(["m", "some text", "8"]) for _ in range(draw.randint(1, 2))]
            for field in draw.sample(fields, draw.randint(0, min(4, len(fields)))):
                option = f"--{draw.choice(['', '', 'no-'])}{field.replace('_', '-')}"
                tokens += draw.choice([[option], [option, draw.choice(["3", "0.5", "word", "x/y"])], [f"{option}={draw.choice(['3', '0.5', 'word'])}"]])
            draw.shuffle(tokens)
            plain = read(command.options, tokens)
            if plain is not None:
                assert plain == by_cyclopts(command, tokens), (name, tokens)
                agreed += 1
    assert agreed > 40
