#!/usr/bin/env python3
"""Take the pictures of the server's page in docs/images. Needs playwright and Chromium.

python scripts/record_page.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
SAID = ("Hello, how are you?", "Do you like dogs?")


def main() -> None:
    """Start a server, talk with it and take the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [sys.executable, "-m", "rwkv_cli", "serve", "--port", "0"],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"RWKV_DATA_DIR": folder},
        )
        assert server.stderr
        address = next(line.split()[-1] for line in server.stderr if line.startswith("serving at"))
        try:
            record(address)
        finally:
            server.terminate()


def record(address: str) -> None:
    """The page in a window, and on a phone in the dark."""
    with sync_playwright() as playwright:
        path = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 620})
        page.goto(address)
        page.locator("#model option").first.wait_for(state="attached")
        for n, text in enumerate(SAID):
            page.fill("#message", text)
            page.keyboard.press("Enter")
            page.locator("article.assistant .tools").nth(n).wait_for()
        page.get_by_label("Another answer").last.click()
        page.get_by_text("2/2").wait_for()
        page.screenshot(path=IMAGES / "page.png")
        page.set_viewport_size({"width": 390, "height": 620})
        page.click("#theme")
        page.screenshot(path=IMAGES / "page-phone.png")
        browser.close()


if __name__ == "__main__":
    main()
