"""The report in Chromium: it fits the window, asks for nothing, and people who cannot see or point can use it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ceit_cli
from ceit.train.run import train
from tests.train.conftest import SMALL

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a short training on the digits."""
    folder = tmp_path_factory.mktemp("report")
    train(replace(SMALL, img_size=(8, 8)), "digits", folder / "run")
    assert ceit_cli.main(["report", str(folder / "run"), "--output", str(folder / "report.html")]) == 0
    return folder / "report.html"


@pytest.mark.parametrize("width", [1100, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_window_and_serves_everybody(
    chromium: Any, report: Path, width: int, scheme: str, serious_faults: Callable[[Any], list[str]]
) -> None:
    page, requests = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme), []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    page.locator("summary").evaluate_all("all => all.forEach(element => element.parentElement.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert serious_faults(page) == []
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    assert report.stat().st_size < 5e6


def test_the_table_of_classes_is_sorted_by_a_click(chromium: Any, report: Path) -> None:
    page = chromium.new_page()
    page.goto(report.as_uri())
    table = page.locator("table.sortable").first

    def column(number: int) -> list[str]:
        return [row.locator("td, th").nth(number).inner_text() for row in table.locator("tbody tr").all()]

    heads = table.locator("th button")
    before = column(0)
    heads.nth(1).click()
    shares = [float(text.rstrip("%")) for text in column(1)]
    assert shares in (sorted(shares), sorted(shares, reverse=True))
    assert sorted(column(0)) == sorted(before)
