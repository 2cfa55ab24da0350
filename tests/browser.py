"""Pages in a real browser: what of them runs, and where their links lead."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; `apt-get install chromium` brings it")
RUN = "document.documentElement.dataset.run=1"
PAYLOADS = (
    f"<script>{RUN}</script>",
    f"</script><script>{RUN}</script>",
    f"\"'><img src=x onerror={RUN}>",
    f"<svg/onload={RUN}>",
    f"</title></style></textarea><script>{RUN}</script>",
    f'<a href="javascript:{RUN}">x</a>',
    f"javascript:{RUN}",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'></iframe>",
    f"--><script>{RUN}</script><!--",
    f"]]><script>{RUN}</script>",
    f"<details open ontoggle={RUN}>x",
    f"<input autofocus onfocus={RUN}>",
    f"1; background: url(javascript:{RUN})",
    f"{{{{ cycler.__init__ }}}} {{% raw %}} <script>{RUN}</script>",
    f"\u202e\u2066<scr\u00adipt>{RUN}</script> \uff1cscript\uff1e &#60;script&#62;{RUN}&lt;/script&gt; %3Cscript%3E",
    f"<scr<script>ipt>{RUN}</scr</script>ipt>",
)
FRAMES = """<!doctype html><meta charset="utf-8"><pre id="found"></pre><script>
const pages = PAGES;
const frames = pages.map(page => {
    const frame = document.createElement("iframe");
    frame.srcdoc = page;
    return document.body.appendChild(frame);
});
addEventListener("load", () => setTimeout(() => {
    document.getElementById("found").textContent = JSON.stringify(frames.map(frame => {
        const inside = frame.contentDocument, all = [...inside.querySelectorAll("*")];
        return {
            ran: inside.documentElement.dataset.run || document.documentElement.dataset.run || null,
            elements: all.length,
            scripts: inside.scripts.length,
            handlers: all.filter(one => [...one.attributes].some(own => own.name.startsWith("on"))).length,
            links: all.filter(one => ["href", "xlink:href", "src", "action", "formaction"].some(name =>
                (one.getAttribute(name) || "").trim().toLowerCase().startsWith("javascript:"))).length,
            text: inside.body.textContent,
        };
    }));
}, 2000));
</script>"""


def inspect(pages: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """Each page in a frame of its own: whether a payload ran, and how many scripts, handlers and such links it has."""
    assert CHROMIUM
    outer = folder / "frames.html"
    outer.write_text(FRAMES.replace("PAGES", json.dumps(list(pages)).replace("<", "\\u003c")), encoding="utf-8")
    switches = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
    words = [CHROMIUM, *switches, f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000", "--dump-dom"]
    done = subprocess.run([*words, outer.as_uri()], capture_output=True, text=True, check=False, timeout=300)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    assert found[1], "the frames were not loaded"
    import html

    return json.loads(html.unescape(found[1]))
