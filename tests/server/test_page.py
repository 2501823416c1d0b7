"""The page at `/`: that it asks nobody else, and, in a browser, what a person does with it.

What runs in a browser needs the `peers` extra, and Chromium.
"""

import os
import re
import shutil
from pathlib import Path

import pytest
from helpers.server import process, serving
from helpers.talker import talking

from rwkv_cli.server.api.page import FOLDER

OWN = [
    path
    for path in FOLDER.rglob("*")
    if path.suffix in (".html", ".js", ".css") and path.parent.name != "vendor"
]


def test_all_that_the_page_names_is_there():
    with serving(talking()) as client:
        index = client.get("/")
        assert index.headers["content-type"].startswith("text/html")
        assert index.headers["content-security-policy"].startswith("default-src 'self'")
        named = re.findall(r'(?:src|href)="(page/[^"]+)"', index.text)
        assert len(named) >= 6
        for script in FOLDER.glob("*.js"):
            named += [f"page/{name}" for name in re.findall(r'from "\./([^"]+)"', script.read_text())]
        for path in named:
            assert client.get(f"/{path}").status_code == 200, path
        for path in (
            "page/__init__.py",
            "page/../app.py",
            "page/%2e%2e/app.py",
            "page//etc/passwd",
            "page/vendor",
        ):
            assert client.get(f"/{path}").status_code == 404, path


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_the_page_asks_nobody_else(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?://|//[a-z]+\.", text)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|\bonclick=| style=", text
    )


def test_what_is_vendored_has_its_licence():
    for library in (FOLDER / "vendor").glob("*.js"):
        assert library.with_suffix(".LICENSE").read_text(encoding="utf-8").strip()
        assert "sourceMappingURL" not in library.read_text(encoding="utf-8")


# ----------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs the peers extra")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not path:
        pytest.skip("needs Chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, tmp_path):
    with process(tmp_path) as server:
        page = browser.new_page()
        page.faults, page.hosts = [], set()
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("request", lambda request: page.hosts.add(request.url.split("/")[2]))
        page.goto(str(server.client.base_url))
        page.locator("#model option").first.wait_for(state="attached")
        page.home = server.client.base_url.netloc.decode()
        yield page
        assert page.faults == []
        assert page.hosts == {page.home}
        page.close()


def say(page, text):
    """Send a message and wait for the end of the answer."""
    before = page.locator("article.assistant .tools").count()
    page.fill("#message", text)
    page.keyboard.press("Enter")
    page.locator("article.assistant .tools").nth(before).wait_for()


def texts(page):
    return [each.inner_text() for each in page.locator("article .body").all()]


def test_a_conversation_is_a_tree(page):
    say(page, "Hello, how are you?")
    say(page, "Do you like dogs?")
    assert len(texts(page)) == 4
    first = texts(page)
    page.get_by_label("Another answer").last.click()
    page.get_by_text("2/2").wait_for()
    assert " 0 read" in page.locator("article").last.inner_text()
    page.get_by_label("Previous branch").last.click()
    assert texts(page) == first
    page.get_by_label("Continue from here").first.click()
    assert texts(page) == first[:2]
    say(page, "Something else")
    assert texts(page)[2] == "Something else"
    page.get_by_label("Go to: Do you like dogs?").click()
    assert texts(page) == first[:3]
    page.reload()
    page.get_by_label("Go to: Do you like dogs?").wait_for()
    assert texts(page)[:2] == first[:2]
    assert page.inner_text("#said") == ""


def test_a_message_is_edited_with_the_keyboard(page):
    say(page, "Hello, how are you?")
    page.keyboard.press("ArrowUp")
    assert page.input_value("#message") == "Hello, how are you?"
    page.fill("#message", "Good morning")
    page.keyboard.press("Enter")
    page.get_by_text("2/2").wait_for()
    page.locator("article.assistant .tools").wait_for()
    assert texts(page)[0] == "Good morning"
    assert page.inner_text("#said").strip()  # what a screen reader was told


def test_a_document_is_read_once(page, tmp_path):
    file = Path(tmp_path / "dog story.txt")
    file.write_text("Rex is a dog. " * 30)
    page.get_by_text("States and documents").click()
    page.set_input_files("#document", str(file))
    page.get_by_text("tokens read.").wait_for()
    assert page.input_value("#state") == "dog story"
    say(page, "Who is Rex?")
    assert len(texts(page)) == 2


def test_what_a_model_says_cannot_run(page):
    wrong = (
        "# Hi <script>window.x=1</script><img src=x onerror='window.x=1'> [a](javascript:window.x=1) "
        "![i](http://evil.example/x.png)\n\n<a href='http://a' style='color:red' onclick='window.x=1'>l</a>"
        "<iframe src='http://evil.example'></iframe>\n\n```python\nprint('a')\n```\n<form action='http://evil.example'>"
    )
    html = page.evaluate(
        """async (text) => {
            const { markdown } = await import("/page/render.js");
            const place = document.createElement("div");
            place.append(...markdown(text, true));
            document.body.append(place);
            return place.innerHTML;
        }""",
        wrong,
    )
    assert not re.search(r"<(script|img|iframe|form)|onclick|onerror|javascript:|style=", html)
    assert 'class="hljs-built_in"' in html
    assert page.evaluate("window.x") is None


def test_a_key_is_asked_for(browser, tmp_path):
    with process(tmp_path, "--api-key", "secret") as server:
        page = browser.new_page()
        page.goto(str(server.client.base_url))
        page.locator("#key").fill("secret")
        page.get_by_text("Use it").click()
        page.locator("#model option").first.wait_for(state="attached")
        say(page, "Hello, how are you?")
        page.close()


def test_it_fits_on_a_phone(page):
    page.set_viewport_size({"width": 360, "height": 640})
    say(page, "Hello, how are you?")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert not page.locator("#new").is_visible()
    page.get_by_title("Conversations and settings").click()
    assert page.locator("#new").is_visible()
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") in ("dark", "light")
