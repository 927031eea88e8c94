"""The report's page in Chromium, opened from disk: filters, sorting, details by mouse and keyboard, both themes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from report_samples import sample_rows

from harness.report.formats.html import render_html

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
NASTY = "</script><img src=x onerror=\"document.title='owned'\"><b>bold</b> {{ 7*7 }}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    try:
        from playwright.sync_api import sync_playwright  # noqa: PLC0415 - so that a missing package has a message
    except ModuleNotFoundError:
        pytest.fail("HARNESS_BROWSER=1 needs playwright: pip install playwright (its own browsers are not needed)")
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.fail("HARNESS_BROWSER=1 needs Chromium on PATH: apt-get install chromium, or your system's own package")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-sync"]
        )
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    rows = sample_rows()
    rows[6] = replace(rows[6], result=rows[6].result.model_copy(update={"reason": NASTY}), sentence=NASTY)
    file = tmp_path / "report.html"
    file.write_text(render_html(rows, "today"), encoding="utf-8")
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    opened = context.new_page()
    complaints: list[str] = []
    opened.on(
        "console", lambda message: complaints.append(message.text) if message.type in {"error", "warning"} else None
    )
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: None if request.url.startswith("file://") else complaints.append(request.url))
    opened.goto(file.as_uri())
    yield opened
    context.close()

    assert complaints == [], "no script error, nothing the security policy had to stop, nothing loaded"


def ids(page: Page) -> list[str]:
    """Ids of the cells that are shown, in the order they are shown."""
    labels = page.locator("tbody.cell:visible .open").evaluate_all("nodes => nodes.map(n => n.ariaLabel)")
    return [str(label).removeprefix("Details of ") for label in labels]


def column(page: Page, number: int) -> list[str]:
    """Texts of one column, top to bottom, counted from 1 after the opening button."""
    return page.locator(f"tbody.cell:visible tr.row td:nth-child({number + 1})").all_inner_texts()


def test_filters_narrow_and_clear_brings_all_back(page: Page) -> None:
    assert len(ids(page)) == 17

    page.select_option("#f-status", "new")
    assert page.inner_text("#shown") == "4 of 17"
    page.select_option("#f-family", "deepseek_v3")
    assert ids(page) == ["deepseek_v3/lora@tf5.5.0-peft0.19.1-trl0.25.1"]
    page.select_option("#f-status", "regression")
    assert ids(page) == ["deepseek_v3/lora@tf5.23.0-peft0.21.2-trl1.16.0"]
    page.click("#clear")
    page.keyboard.type("typeerror reload")
    assert ids(page) == ["qwen3_moe/lora@tf5.6.2-peft0.19.1-trl1.4.0"], "reasons are searched too"
    page.fill("#q", "nothing like it")
    assert page.is_visible("#empty")
    page.keyboard.press("Escape")
    assert len(ids(page)) == 17


def test_overview_and_tallies_choose_cells(page: Page) -> None:
    page.click(".overview button[data-set-family=qwen3_5_moe] >> text=unsupported")
    assert page.inner_text("#shown") == "2 of 17"
    page.click(".tally >> text=known failures")
    assert sorted(set(column(page, 1))) == ["4.57.6", "5.6.2"]


def test_sorting_is_by_number_and_by_version_with_missing_values_last(page: Page) -> None:
    page.click("#cells thead >> text=trained vs merged KL")
    values = [text for text in column(page, 8) if text != "\N{EN DASH}"]
    assert [float(value) for value in values] == sorted(float(value) for value in values)
    assert column(page, 8)[-1] == "\N{EN DASH}"
    page.click("#cells thead >> text=trained vs merged KL")
    assert column(page, 8)[0] == "0.55"
    assert column(page, 8)[-1] == "\N{EN DASH}"

    page.click("#cells thead >> text=transformers")
    assert (column(page, 1)[0], column(page, 1)[-1]) == ("4.57.6", "5.23.0"), "5.23 is newer than 5.6"
    assert page.get_attribute("#cells thead th:has-text('transformers')", "aria-sort") == "ascending"


def test_details_open_by_mouse_and_by_keyboard(page: Page) -> None:
    row = page.locator("tbody.cell", has=page.get_by_label("seed=3"))
    row.locator("tr.row td.outcome").click()
    panel = row.locator(".panel")

    assert panel.is_visible()
    assert panel.locator("pre").first.inner_text() == NASTY, "hostile text is text"
    assert "layers.1.mlp.experts.3.up_proj" in panel.inner_text()
    assert page.title() != "owned"
    button = row.locator(".open")
    assert button.get_attribute("aria-expanded") == "true"
    assert button.get_attribute("aria-controls") == row.locator("tr.more").get_attribute("id")
    button.focus()
    page.keyboard.press("Enter")
    assert not panel.is_visible()
    page.keyboard.press("Space")
    assert panel.is_visible()


def test_copying_the_line_that_reproduces_a_cell(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    row = page.locator("tbody.cell").first
    row.locator(".open").click()
    row.locator(".copy").click()
    page.wait_for_selector(".copy >> text=Copied")

    assert page.evaluate("navigator.clipboard.readText()") == row.locator(".command pre").inner_text()


def test_a_view_can_be_sent_as_an_address(page: Page) -> None:
    page.select_option("#f-stack", "tf5.6.2-peft0.19.1-trl1.4.0")
    page.click("#cells thead >> text=family")
    page.click("#cells thead >> text=family")
    page.locator("tbody.cell:visible .open").first.click()
    before = ids(page)
    page.reload()

    assert (
        ids(page)
        == before
        == [f"{family}/lora@tf5.6.2-peft0.19.1-trl1.4.0" for family in ("qwen3_moe", "glm4_moe", "deepseek_v3")]
    )
    assert page.locator(".panel:visible h3").inner_text() == before[0]


def test_the_head_stays_in_view_below_the_bar(page: Page) -> None:
    page.mouse.wheel(0, 800)
    page.wait_for_function("scrollY > 500")
    bar, head = page.locator("#bar").bounding_box(), page.locator("#cells thead th").first.bounding_box()

    assert bar is not None
    assert head is not None
    assert bar["y"] == pytest.approx(0, abs=1)
    assert head["y"] == pytest.approx(bar["height"], abs=1.5)


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_on_a_narrow_screen_the_table_scrolls_and_not_the_page(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.locator("tbody.cell .open").first.click()

    sizes = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert sizes[0] <= sizes[1]
    assert page.evaluate("(wide => wide.scrollWidth > wide.clientWidth)(document.querySelector('.wide'))")


def test_light_and_dark_have_readable_contrast(page: Page) -> None:
    """Every badge's text against its background: at least 4.5 to 1 (WCAG 2.2, success criterion 1.4.3)."""
    script = """() => [...document.querySelectorAll('.badge, .hint, td, .verdict strong, .tally')].map(node => {
      const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
      const rgb = (color) => {
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
      };
      let back = node;
      while (back && getComputedStyle(back).backgroundColor === 'rgba(0, 0, 0, 0)') back = back.parentElement;
      return [node.textContent.trim(), rgb(getComputedStyle(node).color), rgb(getComputedStyle(back).backgroundColor)];
    })"""

    def luminance(rgba: list[int]) -> float:
        channels = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgba[:3]]
        return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]

    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]  # a literal, in a loop
        found = page.evaluate(script)
        assert len(found) > 17 * 11, "a line of eleven columns for each cell at least"
        for text, ink, paper in found:
            light, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (scheme, text)
