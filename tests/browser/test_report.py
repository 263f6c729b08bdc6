"""The page in a real browser: at two widths, light and dark; needs Chromium, skipped where there is none."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
from typing import Any

import pytest

from overlap_recompute.report import measured_of, read_traces, render
from tests.unit.report.run_traces import write_run
from tests.unit.report.samples import sample_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")

PROBE = """<script>
addEventListener("load", () => { document.title = JSON.stringify({
  overflow: document.documentElement.scrollWidth - innerWidth, width: innerWidth,
  smallest: Math.min(...[...document.querySelectorAll("svg text")].map(e => e.getBoundingClientRect().height)),
  drawn: [...document.querySelectorAll("svg")].every(e => e.getBoundingClientRect().height > 20),
  pictures: document.querySelectorAll("svg").length,
  badges: [...document.querySelectorAll(".badge")].map(e => getComputedStyle(e).color),
  page: getComputedStyle(document.body).backgroundColor,
  requests: performance.getEntriesByType("resource").length }); });
</script>"""


def _look(folder: pathlib.Path, width: int, dark: bool) -> tuple[dict[str, Any], bytes]:
    """What the browser finds on the page at a width, and a screenshot (PNG)."""
    page = folder / "report.html"
    measured = measured_of(read_traces(write_run(folder / "run")), "the trace")
    content = render(dataclasses.replace(sample_report(), measured=measured))
    page.write_text(content.replace("</body>", PROBE + "</body>"))
    # Chromium's own windows are never narrower than 500 px, so the page is looked at through a frame.
    frame = folder / "frame.html"
    scheme = "dark" if dark else "light"
    frame.write_text(
        f'<body style="margin:0;color-scheme:{scheme}"><iframe src="report.html" width="{width}" height="2400" '
        'style="border:0"></iframe>'
        "<script>setInterval(() => { document.title = frames[0].document.title }, 50)</script>"
    )
    shot = folder / f"{width}-{scheme}.png"
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--allow-file-access-from-files",
        f"--user-data-dir={folder / 'browser'}", f"--window-size={max(width, 500)},2400", "--virtual-time-budget=3000",
        *(["--blink-settings=preferredColorScheme=0"] if dark else []),
    ]  # fmt: skip
    dump = subprocess.run(
        [*command, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=200, check=True
    ).stdout
    subprocess.run([*command, f"--screenshot={shot}", frame.as_uri()], capture_output=True, timeout=200, check=True)
    title = dump.partition("<title>")[2].partition("</title>")[0]
    found: dict[str, Any] = json.loads(title)
    return found, shot.read_bytes()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_and_asks_nobody(width: int, dark: bool, tmp_path: pathlib.Path) -> None:
    found, shot = _look(tmp_path, width, dark)
    assert found["width"] == width
    assert found["overflow"] == 0  # wide pictures scroll in their own box, the page does not
    assert found["drawn"] is True and found["requests"] == 0
    assert found["pictures"] == 5 and len(set(found["badges"])) == 2  # simulated and measured do not look the same
    assert float(str(found["smallest"])) >= 12  # px of a line of text in a picture: readable, at 400 px too
    assert found["page"] == ("rgb(21, 24, 27)" if dark else "rgb(252, 252, 251)")
    assert shot.startswith(b"\x89PNG") and len(shot) > 30_000
