"""Debian's Chromium without a screen, what it asked the network for, and axe's verdict on what it shows."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A driver that keeps notes of all requests and of what pages say on the console."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1100,1500"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def requested(driver: Any) -> set[str]:
    """Every address that was asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}


def dress(driver: Any, scheme: str) -> None:
    """light or dark."""
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})


def picture(driver: Any, name: str) -> None:
    """Into the folder SCREENSHOTS, where it is set."""
    if folder := os.environ.get("SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        driver.save_screenshot(str(Path(folder) / f"{name}.png"))


def faults(driver: Any) -> list[Any]:
    """What axe holds against the page, as (how bad, rule, where)."""
    found = importlib.util.find_spec("axe_playwright_python")
    assert found is not None and found.origin is not None
    driver.execute_script((Path(found.origin).parent / "axe.min.js").read_text())
    result = driver.execute_async_script("axe.run().then(arguments[0])")
    assert len(result["passes"]) > 12
    return [(v["impact"], v["id"], [node["html"][:120] for node in v["nodes"]]) for v in result["violations"]]
