"""A real Chromium, headless; where it is not installed, tests that need it say so."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1300,1000",
)
_PATIENCE_SECONDS = 180


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield a selenium driver of a browser with an empty profile; skip the test where there is no browser.

    `TLLM_NEEDS_CHROMIUM=1` turns the skip into a failure.
    """
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        reason = "Debian's packages `chromium` and `chromium-driver` are not installed"
        if os.environ.get("TLLM_NEEDS_CHROMIUM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory() as profile:
        options = Options()
        options.binary_location = browser
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        session = webdriver.Chrome(options=options, service=Service(driver))
        try:
            yield session
        finally:
            session.quit()


def open_page(session: Any, path: Path, theme: str = "light") -> None:
    """Load a report and wait until its figures are drawn."""
    session.get("about:blank")
    session.get(f"{path.resolve().as_uri()}#theme={theme}")
    wait_for(session, "return document.documentElement.dataset.ready === 'true'")


def wait_for(session: Any, script: str) -> None:
    """Wait until a script returns something true."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not session.execute_script(script):
        assert time.monotonic() < deadline, f"never true: {script}; console: {session.get_log('browser')}"
        time.sleep(0.1)


def click(session: Any, element: Any) -> None:
    """Click where a mouse would, with the element in the middle of the window: at its edge a bar is in the way."""
    session.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    element.click()


def requests_of(session: Any) -> set[str]:
    """Return the addresses that the browser has asked for since this was last called."""
    found = set()
    for entry in session.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            found.add(message["params"]["request"]["url"])
    return found
