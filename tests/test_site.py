"""The documentation site builds without warnings; its links, titles and pictures hold."""

import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a reader and a search engine need of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.ids, self.pictures, self.loads = [], set(), [], []
        self.title, self.description, self.language = "", None, None
        self.within = None
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.within = tag
        self.ids.update(attributes[key] for key in ("id", "name") if attributes.get(key))
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        elif tag == "img":
            self.pictures.append((attributes.get("src"), attributes.get("alt")))
        elif tag == "html":
            self.language = attributes.get("lang")
        elif tag == "meta" and attributes.get("name") == "description":
            self.description = attributes.get("content")
        if tag in ("script", "img"):
            self.loads.append(attributes.get("src") or "")
        elif tag == "link" and attributes.get("rel") == "stylesheet":
            self.loads.append(attributes["href"])

    def handle_data(self, data):
        if self.within == "title":
            self.title += data

    def handle_endtag(self, _):
        self.within = None


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, ROOT / "scripts" / "build_site.py", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues" in done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def broken(pages, site):
    """Internal links that lead nowhere."""
    bad = []
    for path, page in pages.items():
        for link in page.links:
            address, anchor = urldefrag(link)
            if urlsplit(address).scheme or address.startswith("//"):
                continue
            target = (path.parent / unquote(address)).resolve() if address else path
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].ids if target in pages else None
            if not target.exists() or (
                anchor and known is not None and unquote(anchor) not in known
            ):
                bad.append((str(path.relative_to(site)), link))
    return bad


def test_every_internal_link_holds(pages, site):
    assert len(pages) > 50
    assert not broken(pages, site)


def test_a_broken_link_is_seen(pages, site):
    """The control."""
    path = site / "index.html"
    pages[path].links += ["docs/nowhere/", "#nowhere"]
    try:
        assert len(broken(pages, site)) == 2
    finally:
        del pages[path].links[-2:]


def test_pages_have_what_search_engines_and_readers_need(pages):
    assert len({page.title for page in pages.values()}) == len(pages)
    for path, page in pages.items():
        assert page.language == "en", path
        assert page.description, path
        assert all(alt for _, alt in page.pictures), path


def test_nothing_is_loaded_from_elsewhere(pages):
    for path, page in pages.items():
        assert not [load for load in page.loads if urlsplit(load).netloc], path


def test_every_page_of_docs_is_in_the_navigation():
    navigation = tomllib.loads((ROOT / "docs" / "site.toml").read_text())["project"]["nav"]

    def leaves(node):
        if isinstance(node, str):
            return {node}
        items = node.values() if isinstance(node, dict) else node
        return set().union(*map(leaves, items))

    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert not pages - leaves(navigation)
    assert {page for page in leaves(navigation) if page.startswith("docs/")} <= pages
