"""The HTML page in a real browser: it sorts, filters, opens the runs of a number, and changes its colours."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from records import record, write

from ltexp.evaluation.record import read_record
from ltexp.papers import all_cells, match_cells
from ltexp.report.page import Page, PageColumn, PageRow
from ltexp.report.records import Run
from ltexp.reproduce.compare import compare, to_page
from ltexp.reproduce.measured import Outputs

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

ACTIONS = """
<script>
const seen = {};
const visible = () => [...document.querySelectorAll("tbody tr:not(.runs)")].filter((row) => !row.hidden)
  .map((row) => row.cells[0].textContent);
const heading = (number) => document.querySelectorAll("thead button")[number];
const set = (name, value) => {
  const control = document.querySelector(`[name="${name}"]`);
  control.value = value;
  control.dispatchEvent(new Event("input"));
};
const paper = () => getComputedStyle(document.body).backgroundColor;
seen.start = visible();
heading(2).click(); seen.first = visible();
heading(2).click(); seen.second = visible();
heading(0).click(); seen.names = visible();
set("dataset", "c10"); seen.filtered = visible();
seen.count = document.getElementById("count").textContent;
set("search", "mislas"); seen.both = visible();
set("search", ""); set("dataset", "");
const number = document.querySelector("td button");
number.click();
seen.open = [...document.querySelectorAll("tr.runs li")].map((item) => item.textContent);
seen.links = [...document.querySelectorAll("tr.runs a")].map((link) => link.getAttribute("href"));
seen.expanded = number.getAttribute("aria-expanded");
number.click(); seen.closed = document.querySelectorAll("tr.runs").length;
seen.before = paper(); document.getElementById("theme").click(); seen.after = paper();
seen.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
seen.text = document.querySelector("tbody").textContent;
const out = document.createElement("pre"); out.id = "seen"; out.textContent = JSON.stringify(seen);
document.body.append(out);
</script>
"""


def page() -> Page:
    runs = [Run(Path("/runs/one"), record(overrides=["method=mislas", "stage1.x='<b>'"], seed=3))]
    columns = [PageColumn("method", filter=True), PageColumn("dataset", filter=True)]
    columns.append(PageColumn("measured", numeric=True, digits=2, opens=True, better=1, mirror=100))
    rows = [
        PageRow(["ce", "c10", [90.5, None]], "full", error=True),
        PageRow(["mislas", "c100", [47.0, 0.5]], "full", runs),
        PageRow(["mislas", "c10", [82.0, 0.25]], "shortened"),
        PageRow(["bbn </script>", "c10", None], "published-only"),
    ]
    return Page("title & more", ["a note"], columns, rows)


def browse(folder: Path, url: str, *flags: str) -> dict[str, Any]:
    """What the page at `url` writes into its element #seen."""
    if BROWSER is None:
        pytest.skip("no Chromium here")
    usual = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile", "--dump-dom"]
    command = [BROWSER, *usual, "--virtual-time-budget=4000", *flags, url]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="seen">(.*?)</pre>', answer.stdout, re.DOTALL)
    assert found, answer.stderr[-2000:] + answer.stdout[-2000:]
    content = json.loads(html.unescape(found[1]))
    assert isinstance(content, dict)
    return content


def with_actions(text: str, actions: str) -> str:
    head, _, tail = text.rpartition("</body>")
    return head + actions + "</body>" + tail


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("page")
    (folder / "page.html").write_text(with_actions(page().to_html(folder), ACTIONS))
    return browse(folder, (folder / "page.html").as_uri())


def test_it_sorts_by_number_with_nothing_last(seen: dict[str, Any]) -> None:
    assert seen["start"] == ["ce", "mislas", "mislas", "bbn </script>"]
    assert seen["first"] == ["mislas", "mislas", "ce", "bbn </script>"]  # the best first: 82, 47, and an error of 90.5
    assert seen["second"] == ["ce", "mislas", "mislas", "bbn </script>"]
    assert seen["names"] == ["bbn </script>", "ce", "mislas", "mislas"]
    assert "47.00 ± 0.50" in seen["text"]


def test_it_filters_by_menu_and_by_words(seen: dict[str, Any]) -> None:
    assert sorted(seen["filtered"]) == ["bbn </script>", "ce", "mislas"]
    assert seen["count"] == "3 of 4 lines"
    assert seen["both"] == ["mislas"]


def test_a_number_opens_its_runs_with_command_record_and_links(seen: dict[str, Any]) -> None:
    (text,) = seen["open"]
    assert "seed 3, all 50.00" in text
    assert "ltexp train method=mislas" in text
    assert "<b>" in text  # as text, not as markup
    assert all(link.endswith(("/runs/one/record.json", "/runs/one/config.yaml")) for link in seen["links"])
    assert (seen["expanded"], seen["closed"]) == ("true", 0)


def test_it_has_two_colour_schemes_and_fetches_nothing(seen: dict[str, Any]) -> None:
    assert {seen["before"], seen["after"]} == {"rgb(255, 255, 255)", "rgb(22, 24, 27)"}
    assert seen["requests"] == []


LOOK = """
<script>
addEventListener("load", () => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const box = (element) => { const r = element.getBoundingClientRect(); return [r.left, r.right, r.top, r.bottom]; };
  const scroll = document.querySelector(".scroll"), head = document.querySelector("thead th");
  const seen = {width: innerWidth, title: document.title, heading: document.querySelector("h1").textContent};
  seen.columns = all("thead th").map((cell) => [cell.textContent, ...box(cell)]);
  seen.clipped = all("tbody td:nth-child(-n+4)").filter((cell) => cell.scrollWidth > cell.clientWidth + 1).length;
  seen.pageScrolls = document.documentElement.scrollWidth > innerWidth;
  seen.dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const shade = (text) => text.match(/[\\d.]+/g).slice(0, 3).map((value) => value / 255);
  const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const paper = light(shade(getComputedStyle(document.body).backgroundColor));
  const contrast = (element) => {
    const ink = light(shade(getComputedStyle(element).color));
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  };
  seen.contrast = Math.min(...all("td, td small, td button, th button, p.note, label").map(contrast));
  const before = box(head);
  scroll.scrollTop = 200;
  seen.moved = scroll.scrollTop;
  seen.sticks = Math.abs(box(head)[2] - before[2]) < 1;
  scroll.scrollLeft = 300;
  seen.named = Math.abs(box(document.querySelector("tbody td"))[0] - before[0]) < 1;
  parent.postMessage(JSON.stringify(seen), "*");
});
</script>
"""

FRAME = """<!doctype html><title>frame</title>
<iframe src="page.html" style="border:0;width:%dpx;height:160px"></iframe>
<pre id="seen"></pre><script>
addEventListener("message", (event) => { document.getElementById("seen").textContent = event.data; });
</script>"""


SLOW = pytest.mark.slow  # the other two of the four ways
WAYS = [(1280, False), (390, True), pytest.param(1280, True, marks=SLOW), pytest.param(390, False, marks=SLOW)]


@pytest.mark.parametrize(("width", "dark"), WAYS)
def test_published_measured_and_difference_are_seen_at_once(width: int, dark: bool, tmp_path: Path) -> None:
    """Nothing of the first four columns is off the window, header and names stay, and every text can be read."""
    cells = match_cells(all_cells(), "mislas/3/*/cifar100_lt/100")
    facts = {"method": "mislas", "dataset": "cifar100_lt", "backbone": "resnet32", "imbalance": "longtail"}
    stage = {"epochs": 200, "metrics": record()["metrics"]}
    stages = [{"name": "stage1", **stage}, {"name": "stage2", **stage, "epochs": 10}]
    runs = [Run(tmp_path / str(s), record(seed=s, all=46.0 + s, stages=stages, **facts)) for s in (0, 1)]
    lines = compare(cells, Outputs(runs), missing=True)
    text = to_page(lines, "published & measured").to_html(tmp_path)
    (tmp_path / "page.html").write_text(with_actions(text, LOOK))
    (tmp_path / "frame.html").write_text(FRAME % width)
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    found = browse(tmp_path, (tmp_path / "frame.html").as_uri(), "--window-size=1400,900", scheme)
    assert (found["width"], found["dark"]) == (width, dark)
    assert found["title"] == found["heading"] == "published & measured"
    assert [name for name, *_ in found["columns"][:4]] == ["method", "published", "measured", "difference"]
    assert all(0 <= left < right <= width for _, left, right, *_ in found["columns"][:4])
    assert (found["clipped"], found["pageScrolls"]) == (0, False)
    assert found["moved"] > 0
    assert (found["sticks"], found["named"]) == (True, True)
    assert found["contrast"] >= 4.5  # WCAG AA


def test_without_javascript_the_page_says_what_it_is() -> None:
    text = page().to_html(Path("/runs"))
    assert "<title>title &amp; more</title>" in text
    assert "<h1>title &amp; more</h1>" in text
    assert '<p class="note">a note</p>' in text


def test_names_cannot_leave_the_page_script(tmp_path: Path) -> None:
    """Neither an end tag nor the comment that makes a browser look for another one."""
    evil = "<!--<script>{{DATA}}</script><img src=x onerror=alert(1)>\u202e"
    text = Page(evil, [evil], [PageColumn(evil)], [PageRow([evil], detail=evil)]).to_html(tmp_path)
    assert "<img" not in text
    assert "<!--" not in text
    assert "\u202e" not in text
    assert text.count("</script>") == 2
    data = re.search(r'application/json">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])["rows"][0]["cells"][0].startswith("<!--<script>{{DATA}}</script><img")


def test_a_page_takes_its_runs_along_without_paths_of_the_machine(tmp_path: Path) -> None:
    folder = write(tmp_path / "home" / "run", overrides=["method=crt", "paths.data=/home/someone/data"])
    (folder / "reliability.png").write_bytes(b"png")
    plain = {"paths": {"data": "/home/someone/data"}, "stage_cache": {"dir": "/home/someone"}, "overrides": []}
    (folder / "config.yaml").write_text(json.dumps(plain))
    runs = [Run(folder, read_record(folder))]
    rows = [PageRow(["crt", 50.0], runs=runs)]
    Page("t", [], [PageColumn("method"), PageColumn("all", opens=True)], rows).write(tmp_path / "mail" / "page.html")
    shutil.rmtree(tmp_path / "home")
    text = (tmp_path / "mail" / "page.html").read_text()
    links = re.findall(r'\["[^"]+","(page_files[^"]+)"\]', text)
    assert [Path(link).name for link in links] == ["record.json", "config.yaml", "reliability.png"]
    assert all((tmp_path / "mail" / link).is_file() for link in links)
    everything = text + "".join((tmp_path / "mail" / link).read_text() for link in links)
    assert "someone" not in everything
