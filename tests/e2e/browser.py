"""A real browser: Chromium without a window, driven by Selenium."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.process import PATIENCE, eventually

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

# Nothing is asked of any host but this one.
QUIET = (
    "--headless=new",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--no-default-browser-check",
    "--no-first-run",
)


class Browser:
    """One page at a time, and what a person does with it."""

    def __init__(self, driver: Any, screenshots: Path) -> None:
        self.driver = driver
        self._screenshots = screenshots

    def open(self, url: str, *, width: int = 1280, height: int = 1000, dark: bool = False) -> None:
        """Load a page into a fresh tab: nothing of another page is kept."""
        old = self.driver.window_handles
        self.driver.switch_to.new_window("tab")
        new = self.driver.current_window_handle
        for handle in old:
            self.driver.switch_to.window(handle)
            self.driver.close()
        self.driver.switch_to.window(new)
        self.driver.get_log("browser")
        self.light(dark=dark)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(url)

    def light(self, *, dark: bool) -> None:
        """Have the page as its user's system is: dark or light."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def run(self, script: str, *values: Any) -> Any:
        """Evaluate an expression in the page."""
        return self.driver.execute_script(f"return ({script})", *values)

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        """The element of a selector, when it is there."""
        return eventually(lambda: next(iter(self.all(selector)), None), selector)

    def text(self, selector: str) -> str:
        """What a selector's element says, seen or not; "" where there is none."""
        return str(self.run("document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def click(self, selector: str, label: str = "") -> None:
        """Press a button when it can be pressed."""

        def found() -> Any:
            buttons = self.all(selector)
            return next((each for each in buttons if each.is_enabled() and label in each.text), None)

        eventually(found, f"{selector} {label}").click()

    def type(self, selector: str, text: str) -> None:
        """Write into a field, in the place of what is there."""
        field = self.one(selector)
        field.clear()
        field.send_keys(text)

    def press(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def until(self, look: Callable[[], Any], what: str, within: float = PATIENCE) -> Any:
        """Wait until there is something; a screenshot is kept where there is nothing."""
        try:
            return eventually(look, what, within)
        except AssertionError:
            self.screenshot("failed")
            raise

    def screenshot(self, name: str) -> Path:
        """Keep what is to be seen of the page, from its top to its end."""
        height = self.run("document.documentElement.scrollHeight")
        width = self.run("innerWidth")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        path = self._screenshots / f"{name}.png"
        self.driver.save_screenshot(str(path))
        return path

    def complaints(self) -> list[str]:
        """What the browser has to say against the page since the last time."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@contextlib.contextmanager
def chromium(folder: Path, screenshots: Path) -> Iterator[Browser]:
    """Start a browser, and end it. Skips the test where there is none.

    Args:
        folder: Empty; for the browser's own files.
        screenshots: Where they are put.
    """
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium, chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (*QUIET, f"--user-data-dir={folder}"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # root has no use for one, and no permission
    screenshots.mkdir(parents=True, exist_ok=True)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield Browser(driver, screenshots)
    finally:
        driver.quit()
