"""The playground in a real Chromium: `make browser` sets it up and runs this."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from story import LONG, MARKUP, serving

pytestmark = pytest.mark.browser

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
FLAGS += " --disable-background-networking --disable-component-update --disable-sync"
LONG_TASK_MS = 200
KEY = "a-key-of-a-tab"


@pytest.fixture(scope="module")
def chromium():
    reason = "needs Playwright and Chromium: make browser"
    api = pytest.importorskip("playwright.sync_api", reason=reason)
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip(reason)
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def story():
    with serving() as url:
        yield url


@pytest.fixture
def opened(chromium):
    """Opens pages; at the end, none of them may have complained, or asked anybody else."""
    contexts, complaints = [], []

    def new(url, width=1280, scheme="light", **options):
        size = {"width": width, "height": 900}
        context = chromium.new_context(viewport=size, color_scheme=scheme, **options)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        contexts.append(context)
        page = context.new_page()
        home = re.match(r"https?://[^/]+", url).group()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda message: (
                complaints.append(message.text)
                if message.type in ("error", "warning") and "status of 4" not in message.text
                else None
            ),
        )
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith((home, "data:")) else complaints.append(request.url)
            ),
        )
        page.goto(url)
        return page

    yield new
    for context in contexts:
        context.close()
    assert [text for text in complaints if "ERR_INCOMPLETE_CHUNKED" not in text] == []


def generated(page, prompt="Tell me a story."):
    page.fill("#prompt", prompt)
    page.click("#generate")
    ended(page)


def ended(page):
    page.wait_for_selector("#sweep:not([disabled])")


def texts(page):
    ended(page)
    return page.inner_text("#text-base"), page.inner_text("#text-guided")


def test_the_path_of_a_newcomer(opened, story):
    """Open, move a slider, see both answers, branch, share the address, reload."""
    page = opened(story)
    page.wait_for_selector("[data-scorer]")
    assert page.inner_text("#model") == "story"
    slider = page.get_by_label("plainness", exact=True)
    slider.focus()
    for _ in range(5):
        slider.press("ArrowLeft")
    assert page.inner_text(".scorer:has([data-scorer=plainness]) output") == "−0.5"
    page.fill("#prompt", "Tell me a story.")
    page.press("#prompt", "Control+Enter")
    base, guided = texts(page)
    assert base
    assert guided
    assert base != guided
    assert "KL, nats" in page.inner_text("#figures-guided")
    assert page.locator("#text-guided [data-heat=kl]").count() > 3

    page.focus("#text-guided")
    for key in ("Home", "ArrowRight", "ArrowRight"):
        page.press("#text-guided", key)
    assert page.inner_text("#title-step").startswith("Step 3")
    rows = page.locator("#candidates tbody tr")
    assert rows.count() > 16
    assert page.locator("#candidates tr.taken").count() == 1
    assert page.locator("#candidates th.own-1").inner_text() == "plainness"
    other = page.locator("#candidates tbody button:not([disabled])").first
    other.focus()
    other.press("Enter")
    ended(page)
    branch = page.inner_text("#text-guided")
    assert branch != guided
    assert page.locator("#tree button").count() == 2
    assert page.locator("#text-guided .chosen").count() == 1

    page.click("#copy-link")
    page.locator("#copy-link", has_text="Copied").wait_for()
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == page.url
    again = opened(link)
    assert texts(again) == (base, branch)
    assert again.locator("#tree button").count() == 2
    assert again.locator("[data-scorer=plainness]").input_value() == "-0.5"
    again.reload()
    assert texts(again) == (base, branch)
    again.locator("#tree button").first.click()
    assert texts(again) == (base, guided)


def test_colours_budget_and_sweep(opened, story):
    page = opened(story)
    generated(page)
    page.select_option("#colour", "score:calm")
    for heat in ("up", "down"):
        page.wait_for_selector(f"#text-guided [data-heat={heat}]", state="attached")
    assert page.locator("#text-guided [data-heat=kl]").count() == 0
    page.select_option("#colour", "none")
    page.locator("#text-guided [data-heat=none]").nth(29).wait_for(state="attached")
    page.check("[value=kl_budget]")
    page.fill("#kl_budget", "1.5")
    with page.expect_request("**/generate") as sent:
        page.click("#generate")
        page.wait_for_timeout(50)
    assert {"beta", "kl_budget"} & set(sent.value.post_data_json)
    ended(page)
    page.click("#sweep")
    ended(page)
    assert page.locator("#sweep-plot .point").count() == 5
    assert page.locator("#sweep-plot .here").count() == 1
    label = page.locator("#sweep-plot svg").get_attribute("aria-label")
    assert "This answer" in label


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_no_serious_findings_of_axe(opened, story, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = opened(story, width, scheme, bypass_csp=True)
    generated(page)
    page.locator("#text-guided [data-heat=kl]").first.click()
    page.click("#sweep")
    ended(page)
    page.click("#copy-python")
    page.click("#more summary")
    page.click("#open-key")
    page.wait_for_timeout(300)  # transitions of colours
    violations = axe.run(page).response["violations"]
    serious = [f for f in violations if f["impact"] in ("serious", "critical")]
    assert not serious, json.dumps(
        [(f["id"], [node["html"] for node in f["nodes"][:3]]) for f in serious], indent=1
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_long_answer_stays_smooth(opened, story):
    """No task over 200 ms, while it arrives and while its steps are looked at."""
    page = opened(story)
    page.evaluate(
        "window.tasks = []; new PerformanceObserver((list) => list.getEntries().forEach("
        "(entry) => window.tasks.push(entry.duration))).observe({type: 'longtask'})"
    )
    page.fill("#prompt", "a long story")
    page.click("#generate")
    ended(page)
    page.wait_for_selector(f"#token-{LONG - 1}", state="attached")
    page.focus("#text-guided")
    for key in ("End", "ArrowUp", "Home", "ArrowDown"):
        page.press("#text-guided", key)
    page.select_option("#colour", "score:calm")
    page.wait_for_timeout(500)
    tasks = page.evaluate("window.tasks")
    assert max(tasks, default=0) < LONG_TASK_MS, tasks


def test_markup_is_only_text(opened, story):
    page = opened(story)
    generated(page, "markup, please")
    page.locator("#text-guided span").first.click()
    page.select_option("#colour", "score:plainness")
    shown = page.evaluate("document.getElementById('text-guided').textContent")
    shown += page.evaluate("document.getElementById('text-base').textContent")
    assert any(text in shown for text in MARKUP[:2]), "the control: the story has markup"
    assert "<b>bold</b>" in page.inner_text("#scorers")
    assert page.locator("main img, main script, main style, main b").count() == 0
    assert "owned" not in page.title()
    page.goto(f"{story}/#prompt=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E&w.%3Cb%3E=1&branch=x.y.z")
    page.reload()
    page.wait_for_selector("[data-scorer]")
    assert page.locator("main img").count() == 0
    assert page.input_value("#prompt").startswith("<img")


def test_a_key_is_wanted_and_stays_in_the_tab(opened):
    with serving(api_key=[KEY]) as url:
        page = opened(url)
        page.wait_for_selector("#key:focus")
        assert "needs an API key" in page.inner_text("#error-key")
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        page.locator("#error-key", has_text="know").wait_for()
        page.fill("#key", KEY)
        page.press("#key", "Enter")
        page.wait_for_selector("[data-scorer]")
        generated(page)
        page.click("#copy-curl")
        assert "$TRIMTAB_API_KEY" in page.inner_text("#code")
        assert KEY not in page.content() + page.url
        assert page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 1]
        assert page.context.cookies() == []
        page.reload()
        assert all(texts(page))
        other = page.context.new_page()
        other.goto(url)
        other.wait_for_selector("#key:focus")


def test_errors_stand_where_they_belong(opened, story):
    page = opened(story)
    page.wait_for_selector("[data-scorer]")
    page.click("#more summary")
    page.fill("#mass", "3")
    page.click("#generate")
    page.wait_for_selector("#mass[aria-invalid]")
    assert "mass" in page.inner_text("#error-mass")
    assert page.evaluate("document.activeElement.id") == "mass"
    page.fill("#mass", "")
    page.click("#generate")
    assert page.inner_text("#error-mass") == "Give a number."
    page.fill("#mass", "0.9")
    page.fill("#prompt", "it breaks, slowly")
    page.click("#generate")
    page.locator("#state-guided", has_text="interr").wait_for()
    [kept] = re.findall(r"after (\d+) tokens", page.inner_text("#state-guided"))
    page.wait_for_selector(f"#token-{int(kept) - 1}", state="attached")
    assert page.locator("#text-guided span").count() == int(kept) > 0
    page.fill("#prompt", "it fails")
    page.click("#generate")
    page.locator("#error-general", has_text="the server failed").wait_for()
    page.wait_for_selector("#token-4", state="attached")
    assert page.locator("#text-guided span").count() == 5
    page.fill("#prompt", "slowly, please")
    page.click("#generate")
    page.wait_for_selector("#token-3")
    page.click("#stop")
    page.locator("#state-guided", has_text="stopped").wait_for()
    generated(page)
    assert page.inner_text("#error-general") == ""


def test_copied_requests_run(opened, story):
    page = opened(story)
    generated(page, 'It\'s a "quoted" story\nof $HOME and `date` and \\ too')
    commands = {"curl": ["bash", "-c"], "python": [sys.executable, "-c"]}
    for kind, command in commands.items():
        page.click(f"#copy-{kind}")
        code = page.evaluate("document.getElementById('code').textContent")
        done = subprocess.run([*command, code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        _, guided = texts(page)
        assert guided.split()[0] in done.stdout, code


def test_the_reference_needs_nobody_else(opened):
    with serving(api_key=[KEY]) as url:
        page = opened(f"{url}/docs")
        page.wait_for_selector("#key:focus")
        page.fill("#key", KEY)
        page.press("#key", "Enter")
        page.wait_for_selector(".opblock")
        assert re.search(r"\d+\.\d+", page.inner_text("#version"))
        assert "GenerateRequest" in page.inner_text("#reference")
        page.locator(".opblock", has_text="/generate").first.click()
        page.wait_for_selector(".opblock-body")
        assert "KL budget" in page.inner_text(".opblock-body .examples-select")
