"""The pages: open to everyone, nothing from elsewhere, text never as markup."""

import html.parser
import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from trimtab_server import app, openapi, pages
from trimtab_server.settings import Settings
from trimtab_server.sizes import Bounds
from trimtab_server.state import State

pytestmark = pytest.mark.scorecard(letter="S")

KEY = {"Authorization": "Bearer key"}
FOLDERS = [pages.HERE / "playground", pages.HERE / "reference"]
OWN = sorted(
    file
    for folder in FOLDERS
    for file in folder.iterdir()
    if not file.name.startswith(("swagger-ui", "LICENSE", "NOTICE"))
)
MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment"
    r"|\beval\(|new Function|setAttribute\(\"on|srcdoc|localStorage"
)
ELSEWHERE = re.compile(r"""(https?:)?//[a-z0-9.-]+\.[a-z]{2,}""")


class Page(html.parser.HTMLParser):
    """What a page refers to, and whether it has scripts or styles of its own."""

    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.inline = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.links += [named[n] for n in ("href", "src") if n in named]
        self.ids += [named["id"]] if "id" in named else []
        own = tag == "style" or (tag == "script" and "src" not in named)
        if own or any(name == "style" or name.startswith("on") for name in named):
            self.inline.append(tag)


@pytest.fixture
async def anyone():
    state = State(SimpleNamespace(model="m"), {}, None)
    made = app.build(state, Settings(model="m", api_key=["key"]), Bounds.of(64, 1, 2**20), 8)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(made), base_url="http://here"
    ) as client:
        yield client


async def test_pages_need_no_key_and_what_they_ask_does(anyone):
    for path in pages.PATHS:
        answer = await anyone.get(path)
        assert answer.status_code == 200, path
        assert (await anyone.head(path)).status_code == 200
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert not ELSEWHERE.search(policy)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        again = {"If-None-Match": answer.headers["ETag"]}
        assert (await anyone.get(path, headers=again)).status_code == 304
        assert (await anyone.post(path)).status_code == 405
    for path in ("/openapi.json", "/v1/scorers", "/playground/", "/docs/oauth2-redirect", "/redoc"):
        assert (await anyone.get(path)).status_code == 401, path
    assert (await anyone.get("/redoc", headers=KEY)).status_code == 404
    kind = (await anyone.get("/playground/main.js")).headers["Content-Type"]
    assert kind.startswith("text/javascript")
    playground = (await anyone.get("/")).headers["Content-Security-Policy"]
    assert "require-trusted-types-for 'script'; trusted-types 'none'" in playground


async def test_every_file_of_a_page_exists(anyone):
    for path in ("/", "/playground", "/docs"):
        page = Page((await anyone.get(path)).text)
        assert not page.inline
        assert len(page.ids) == len(set(page.ids))
        local = [link for link in page.links if not link.startswith("#")]
        assert len(local) > 4
        for link in local:
            answer = await anyone.get(f"/{link}", headers=KEY)
            assert answer.status_code == 200, link
            for imported in re.findall(r'^import .* from "\./(.*)";$', answer.text, re.M):
                folder = link.rpartition("/")[0]
                assert (await anyone.get(f"/{folder}/{imported}")).status_code == 200, imported
    index = Page((FOLDERS[0] / "index.html").read_text())
    used = {
        name
        for file in FOLDERS[0].glob("*.js")
        for name in re.findall(r'\bby\("([\w-]+)"\)', file.read_text())
    }
    assert used <= {*index.ids}


def test_own_files_are_small_and_make_no_markup():
    assert len(OWN) > 15
    for file in OWN:
        text = file.read_text()
        assert len(text.splitlines()) <= 400, file
        assert not MARKUP.search(text), file
        plain = text.replace("http://www.w3.org/2000/svg", "")
        assert not ELSEWHERE.search(plain), file
    assert MARKUP.search("box.innerHTML = text")  # the control
    assert ELSEWHERE.search('<script src="//cdn.example.org/x.js">')


def test_every_file_is_in_the_package():
    """hatchling takes all files of a package but those that git ignores."""
    files = [str(file) for folder in FOLDERS for file in folder.iterdir()]
    done = subprocess.run(["git", "check-ignore", *files], cwd=pages.HERE, check=False)
    assert done.returncode != 0
    assert {Path(file).suffix for file in files} >= {".js", ".css", ".html", ".svg"}


async def test_the_description_has_our_bodies(anyone):
    description = (await anyone.get("/openapi.json", headers=KEY)).json()
    assert description["info"]["title"] == "Trimtab"
    assert re.match(r"\d+\.\d+", description["info"]["version"])
    body = description["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/GenerateRequest"}
    schemas = description["components"]["schemas"]
    fields = schemas["GenerateRequest"]["properties"]
    assert {"messages", "answer_token_ids", "beta", "kl_budget", "search"} <= set(fields)
    guided = description["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    [reference] = re.findall(r"schemas/(\w+)", json.dumps(guided))
    assert "guidance" in schemas[reference]["properties"]
    assert schemas["GuidanceParams"]["examples"] == openapi.GUIDANCE_EXAMPLES
    named = {*re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(description))}
    assert named <= set(schemas)
    assert next(iter(description["paths"])) == "/generate"


def test_examples_are_valid():
    from trimtab.params import GuidanceParams
    from trimtab_server.presets.fit import FitRequest
    from trimtab_server.protocol import parse

    for example in openapi.EXAMPLES.values():
        parse(example["value"])
    for example in openapi.GUIDANCE_EXAMPLES:
        GuidanceParams.parse(example)
    for example in openapi.FIT_EXAMPLES.values():
        FitRequest.parse(example["value"])


def test_vendored_files_have_their_licence():
    assert "Apache License" in Path(FOLDERS[1] / "LICENSE").read_text()
