"""The addresses outside that the book and its documents point to: asked once a week."""

import re
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from conftest import ROOT

ADDRESS = re.compile(r"https?://[^\s<>()\[\]{}\"'`]+")
GONE = (404, 410)
EXAMPLES = ("https://github.com/OWNER/NAME",)


def addresses():
    texts = [*ROOT.glob("*.md"), *ROOT.glob("book/*.md"), *ROOT.glob("src/minimax/*.md")]
    texts.append(ROOT / "CITATION.cff")
    found = {link for text in texts for link in ADDRESS.findall(text.read_text("utf-8"))}
    references = (ROOT / "book/references.bib").read_text("utf-8")
    found |= set(ADDRESS.findall(references))
    found |= {f"https://doi.org/{doi}" for doi in re.findall(r"doi = \{(.*?)\}", references)}
    return sorted({link.rstrip(".,;:") for link in found} - set(EXAMPLES))


def trouble(address, timeout=30.0):
    """Return why nobody can read ``address``, "" if it answers.

    A site that refuses programs (403) or is busy (429, 503) is there all the same.
    """
    headers = {"User-Agent": "Mozilla/5.0 (a check of links)"}
    try:
        urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.reason}" if error.code in GONE else ""
    except OSError as error:
        return str(error)
    return ""


@pytest.mark.links
@pytest.mark.parametrize("address", addresses())
def test_the_address_answers(address):
    why = trouble(address) and trouble(address)  # the net may fail once
    assert why == ""


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(self.path[1:]))
        self.end_headers()

    def log_message(self, *_):
        pass


def test_an_address_is_dead_if_it_is_gone_or_does_not_answer():
    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    codes = (200, 403, 404, 410, 429, 503)
    dead = [code for code in codes if trouble(f"{here}/{code}")]
    server.shutdown()
    server.server_close()
    assert dead == [404, 410]
    assert "refused" in trouble(here)


def test_addresses_are_found_in_text_and_references():
    found = addresses()
    assert "https://doi.org/10.1145/1128817.1128824" in found  # a reference gives its number alone
    assert "https://arxiv.org/abs/1412.6572" in found
    assert not any(character in link for link in found for character in ")>}`")
