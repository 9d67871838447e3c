"""A built page, parsed, for tests of its text; and text that tries to become markup."""

import json
from html.parser import HTMLParser
from pathlib import Path

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`&amp;$title${script}\u2028]]>-->"


class Page(HTMLParser):
    """A parsed page: its tags, the text of each element with an id, the script's data."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self._script: str | None = None
        self.data: dict = {}
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._script = dict(attributes).get("id", tag) if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._script = None

    def handle_data(self, text):
        if self._script == "data":
            self.data = json.loads(text)
        elif self._script is None:
            self.text += text

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)
