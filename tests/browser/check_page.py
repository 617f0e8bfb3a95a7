"""The page in a real browser, on a real server with the demo model in 4 and in 16 bits: `make test-browser` (Debian: chromium, chromium-driver).

Not part of `make test`: it needs a browser and half a minute of both cores. SCREENSHOTS=folder keeps pictures, light, dark and narrow.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any

import httpx
import pytest
from chromium import chromium, dress, faults, picture, requested
from conftest import find_smollm2
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

PATIENCE = 180  # seconds, on a machine that has other work
TOKENS = 24
PROMPT = "Write two sentences about the sea and the people who live beside it."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = find_smollm2()
    assert path is not None, "the demo model is missing"
    command = [sys.executable, "-m", "octavo", "serve", str(path), "--quantization", "4bit", "--compare", "16bit", "--port", "0",
               "--served-model-name", "demo", "--receipt", "off",
               "--cache-dir", os.environ.get("OCTAVO_CACHE") or str(tmp_path_factory.mktemp("cache"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            ready = next(line for line in process.stdout if line.startswith("ready"))
            url = ready.split()[-1].removesuffix("/v1")
            end = time.monotonic() + PATIENCE
            while len(httpx.get(f"{url}/v1/models", timeout=PATIENCE).json()["data"]) < 2:
                assert time.monotonic() < end, "the second precision did not come"
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()
        assert process.wait(PATIENCE) == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def page(server: str, browser: Any) -> Any:
    browser.get(f"{server}/")
    until(browser, lambda: browser.find_element(By.ID, "state").text == "Ready." and len(browser.find_elements(By.CSS_SELECTOR, "#left option")) == 2)
    return browser


def until(browser: Any, holds: Callable[[], Any]) -> Any:
    return WebDriverWait(browser, PATIENCE, poll_frequency=0.05).until(lambda _: holds())


def figure(page: Any, name: str) -> float:
    return float(page.find_element(By.CSS_SELECTOR, f'[data-name="{name}"]').text)


def answer(page: Any, side: str) -> str:
    return str(page.execute_script("return document.querySelector(arguments[0]).textContent", f"#{side}-answer .text"))


def done(page: Any) -> bool:
    return not page.find_element(By.ID, "stop").is_enabled() and not page.find_element(By.ID, "verdict").text.startswith("Answering")


def ask(page: Any, prompt: str, right: str, tokens: int = TOKENS) -> None:
    box = page.find_element(By.ID, "prompt")
    box.clear()
    box.send_keys(prompt)
    Select(page.find_element(By.ID, "right")).select_by_visible_text(right)
    page.execute_script("document.getElementById('tokens').value = arguments[0]", tokens)
    page.find_element(By.ID, "go").click()


def test_an_answer_streams_and_the_figures_move(page: Any) -> None:
    before = figure(page, "Tokens generated")
    ask(page, PROMPT, "nobody", 48)
    lengths = set()
    until(page, lambda: lengths.add(len(answer(page, "left"))) or done(page))
    assert len(lengths) > 3, f"it did not come piece by piece: {sorted(lengths)}"
    assert page.find_element(By.ID, "verdict").text.startswith("Done: ") and "per second" in page.find_element(By.CSS_SELECTOR, "#left-answer .speed").text
    until(page, lambda: figure(page, "Tokens generated") > before)
    assert until(page, lambda: page.find_element(By.CSS_SELECTOR, '[data-name="First token, median"]').text.endswith("s"))


def test_the_first_difference_is_marked(page: Any, server: str) -> None:
    ask(page, PROMPT, "demo:16bit")
    until(page, lambda: done(page))
    told = [_answer_of(server, model, PROMPT) for model in ("demo", "demo:16bit")]
    shown = [answer(page, side) for side in ("left", "right")]
    assert shown == told and told[0] != told[1], "4 bits and 16 bits say the same: another prompt is needed"
    before = [page.execute_script("return document.querySelector(arguments[0]).firstChild.textContent", f"#{side}-answer .text") for side in ("left", "right")]
    marks = [page.find_element(By.CSS_SELECTOR, f"#{side}-answer mark").get_attribute("textContent") for side in ("left", "right")]
    same = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(*told, strict=False)))
    assert before[0] == before[1] and marks[0] != marks[1] and before[0] == same[: len(before[0])]
    assert len(before[0]) <= len(same) < len(before[0]) + max(map(len, marks)), "the mark holds the first character that differs"
    assert page.find_element(By.ID, "verdict").text.startswith("They part at token ")
    assert len(page.find_elements(By.CSS_SELECTOR, "#choices tbody tr")) == 3


def test_equal_answers_and_stopping(page: Any) -> None:
    ask(page, PROMPT, "demo", 16)
    until(page, lambda: done(page))
    assert page.find_element(By.ID, "verdict").text == "Both answers are the same, token for token." and not page.find_elements(By.TAG_NAME, "mark")
    ask(page, PROMPT, "demo:16bit", 2000)
    until(page, lambda: len(answer(page, "left")) > 5)
    page.find_element(By.ID, "stop").click()
    until(page, lambda: page.find_element(By.ID, "verdict").text == "Stopped.")


def test_another_server_that_is_none(page: Any) -> None:
    Select(page.find_element(By.ID, "right")).select_by_visible_text("another server…")
    page.find_element(By.ID, "url").send_keys("http://127.0.0.1:9")
    page.find_element(By.ID, "go").click()
    until(page, lambda: "--cors-origin" in page.find_element(By.ID, "verdict").text)


def test_by_keyboard_alone(page: Any) -> None:
    Select(page.find_element(By.ID, "right")).select_by_visible_text("nobody")
    page.execute_script("document.querySelector('.skip').focus()")  # where the first tab leads
    reached: list[str] = []
    keys = webdriver.ActionChains(page)
    for _ in range(25):
        keys.send_keys(Keys.TAB).perform()
        reached.append(page.switch_to.active_element.get_attribute("id"))
        outline = page.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline not in ("none", ""), f"nothing shows that {reached[-1]} has the focus"
        if reached[-1] == "go":
            break
    assert [one for one in reached if one in ("prompt", "left", "right", "tokens", "temperature", "seed", "go")] == [
        "prompt", "left", "right", "tokens", "temperature", "seed", "go"]
    page.execute_script("document.getElementById('tokens').value = 8")
    keys.send_keys(Keys.ENTER).perform()
    until(page, lambda: page.find_element(By.ID, "verdict").text.startswith("Done: "))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(page: Any, scheme: str) -> None:
    ask(page, PROMPT, "demo:16bit")
    until(page, lambda: done(page))
    dress(page, scheme)
    picture(page, scheme)
    assert not faults(page)


def test_narrow(page: Any) -> None:
    page.set_window_size(400, 900)
    try:
        assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth"), "it scrolls sideways"
        page.execute_script("document.getElementById('playground').scrollIntoView()")
        picture(page, "narrow")
    finally:
        page.set_window_size(1100, 1500)


def test_it_asks_nobody_but_its_server_and_breaks_no_rule_of_its_own(page: Any, server: str) -> None:
    """Last: reads what the browser noted of all that was done above."""
    asked = requested(page)
    assert asked and {url for url in asked if not url.startswith((server, "data:"))} <= {"http://127.0.0.1:9/v1/models"}
    told = [entry["message"] for entry in page.get_log("browser") if "127.0.0.1:9/" not in entry["message"]]
    assert not told, told


def _answer_of(server: str, model: str, prompt: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": TOKENS, "temperature": 0, "seed": 1}
    answer = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=PATIENCE).json()
    return str(answer["choices"][0]["message"]["content"])
