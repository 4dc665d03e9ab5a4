"""The report as a person meets it: in a browser, with a mouse and with the keyboard alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.planted_runs import write_run
from tests.report.browser import chromium, click, open_page, requests_of, wait_for
from tllm_plugin.analysis.loaded_run import load_run
from tllm_plugin.report.page import write_report

# One browser for all tests; pytest-xdist keeps a group in one process.
pytestmark = pytest.mark.xdist_group("chromium")

HURT = (3, 8)
# What needs no network: data in the page, and the pages that the browser itself opens when it starts.
_OF_THE_BROWSER = ("data:", "blob:", "about:", "chrome:", "chrome-untrusted:", "chrome-extension:", "devtools:")
HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as session:
        yield session


def write_page(folder: Path, classes: int, **how: Any) -> Path:
    shape = {"classes": classes, **how}
    runs = [
        write_run(folder / "vanilla", **shape),
        write_run(folder / "vanilla-1", seed=1, **shape),
        write_run(folder / "teacher", student="resnet20", accuracy=0.85, **shape),
        write_run(folder / "kd", method="KD", hurt=HURT, **shape),
        write_run(folder / "tllm", method="KD", detector="reference", flagged=HURT, **shape),
    ]
    return write_report([load_run(run) for run in runs], folder / "report.html", networks=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("small"), 12)


def first_classes(browser: Any, count: int = 3) -> list[str]:
    script = "return [...document.querySelectorAll('#classes tbody tr')].map(row => row.cells[0].textContent)"
    return list(browser.execute_script(script))[:count]


@pytest.mark.parametrize("classes, theme", [(12, "light"), (100, "dark")])
def test_loads_without_errors_and_without_a_network(
    browser: Any, classes: int, theme: str, small: Path, tmp_path: Path
) -> None:
    page = small if classes == 12 else write_page(tmp_path, classes, per_class=20, epochs=6)
    browser.get_log("browser")
    requests_of(browser)
    open_page(browser, page, theme)
    assert browser.get_log("browser") == []
    asked = {url for url in requests_of(browser) if not url.startswith(_OF_THE_BROWSER)}
    assert len(asked) == 1 and asked.pop().startswith(page.resolve().as_uri())
    drawn = browser.execute_script("return [...document.querySelectorAll('.js-plotly-plot')].map(plot => plot.id)")
    assert {"plot-delta", "plot-curves", "plot-counts", "plot-overlap", "plot-teacher", "plot-agree"} <= set(drawn)
    assert browser.execute_script("return document.querySelectorAll('#classes tbody tr').length") == classes
    assert browser.execute_script("return document.documentElement.dataset.theme") == theme
    # Nothing sticks out of the window sideways.
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    colours = "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
    text, ground = (sum(map(int, colour[4:-1].split(","))) for colour in browser.execute_script(colours))
    assert (text > ground) == (theme == "dark")


@pytest.mark.parametrize(
    ("methods", "shown"), [([], []), (["KD"], ["overlap"]), (["KD", "AT"], ["overlap", "every-part"])]
)
def test_what_needs_more_methods_is_hidden(browser: Any, methods: list[str], shown: list[str], tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"vanilla-{seed}", seed=seed) for seed in range(2)]
    runs += [write_run(tmp_path / method, method=method, hurt=HURT) for method in methods]
    page = write_report([load_run(run) for run in runs], tmp_path / "report.html", networks=False)
    browser.get_log("browser")
    open_page(browser, page)
    assert browser.get_log("browser") == []
    visible = "return document.getElementById(arguments[0]).checkVisibility()"
    assert [part for part in ("overlap", "every-part") if browser.execute_script(visible, part)] == shown


def test_table_sorts_with_mouse_and_keyboard(browser: Any, small: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    open_page(browser, small)
    # The classes that lost most come first when the page opens.
    assert set(first_classes(browser, 2)) == {f"class {index:04d}" for index in HURT}
    by_name, by_delta = (
        browser.find_element(By.XPATH, f"//table[@id='classes']//th/button[{what}]")
        for what in ("text()='class'", "contains(text(),'KD')")
    )
    click(browser, by_name)
    assert first_classes(browser) == ["class 0000", "class 0001", "class 0002"]
    by_name.send_keys(Keys.ENTER)
    assert first_classes(browser) == ["class 0011", "class 0010", "class 0009"]
    header = by_name.find_element(By.XPATH, "..")
    assert header.get_attribute("aria-sort") == "descending"
    by_delta.send_keys(Keys.SPACE)
    assert header.get_attribute("aria-sort") == "none" and set(first_classes(browser, 2)) <= {
        f"class {index:04d}" for index in HURT
    }


def test_search_and_filter(browser: Any, small: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    open_page(browser, small)
    browser.find_element(By.ID, "search").send_keys("CLASS 001")
    assert sorted(first_classes(browser, 99)) == ["class 0010", "class 0011"]
    assert browser.find_element(By.ID, "shown").text == "2 of 12 classes"
    browser.find_element(By.ID, "search").clear()
    browser.find_element(By.ID, "search").send_keys("nothing of this kind")
    assert first_classes(browser) == []
    browser.execute_script(
        "const box = document.getElementById('search'); box.value = ''; box.dispatchEvent(new Event('input'))"
    )
    Select(browser.find_element(By.ID, "only")).select_by_value("flagged")
    assert sorted(first_classes(browser, 99)) == [f"class {index:04d}" for index in HURT]
    Select(browser.find_element(By.ID, "only")).select_by_value("sure")
    assert set(first_classes(browser, 99)) == {f"class {index:04d}" for index in HURT}


def test_hover_shows_the_class(browser: Any, small: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    open_page(browser, small)
    plot = browser.find_element(By.ID, "plot-delta")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", plot)
    bar = browser.find_element(By.CSS_SELECTOR, "#plot-delta .barlayer .point path")
    ActionChains(browser).move_to_element(bar).perform()
    wait_for(browser, "return document.querySelector('#plot-delta .hoverlayer text') !== null")
    shown = browser.find_element(By.CSS_SELECTOR, "#plot-delta .hoverlayer").text
    assert "class 000" in shown and "delta acc" in shown


def test_a_chosen_class_shows_its_curves(browser: Any, small: Path) -> None:
    from selenium.webdriver.common.by import By

    open_page(browser, small)
    title = "return document.querySelector('#plot-curves .gtitle').textContent"
    browser.find_element(By.ID, "search").send_keys("0005")
    click(browser, browser.find_element(By.CSS_SELECTOR, "#classes tbody button"))
    wait_for(browser, title + " === 'class 0005'")
    assert browser.find_element(By.ID, "curve-class").get_attribute("value") == "class 0005"
    pick = browser.find_element(By.CSS_SELECTOR, "#curve-picks button")
    assert pick.text == f"class {HURT[0]:04d}"
    click(browser, pick)
    wait_for(browser, title + f" === 'class {HURT[0]:04d}'")
    wait_for(browser, "return document.querySelector('#plot-curves .annotation-text') !== null")
    flagged = browser.find_element(By.CSS_SELECTOR, "#plot-curves .annotation-text").get_attribute("textContent")
    assert flagged == "flagged: TLLM (KD)"


def test_theme_button(browser: Any, small: Path) -> None:
    from selenium.webdriver.common.by import By

    open_page(browser, small, "light")
    click(browser, browser.find_element(By.ID, "theme"))
    assert browser.execute_script("return document.documentElement.dataset.theme") == "dark"
    wait_for(browser, "return document.querySelector('#plot-delta .xtick text').style.fill === 'rgb(230, 233, 237)'")


def test_class_names_are_text_and_nothing_else(browser: Any, tmp_path: Path) -> None:
    page = write_page(tmp_path, 10, names=[HOSTILE, "<b>bold</b> & more", *(f"{i}" for i in range(8))])
    browser.get_log("browser")
    open_page(browser, page)
    assert browser.get_log("browser") == []
    assert {HOSTILE, "<b>bold</b> & more"} <= set(first_classes(browser, 99))
    assert browser.execute_script("return document.querySelectorAll('img, #classes b').length") == 0


def test_a_thousand_classes(browser: Any, tmp_path: Path) -> None:
    page = write_page(tmp_path, 1000, per_class=10, epochs=6)
    open_page(browser, page)
    assert browser.execute_script("return document.querySelectorAll('#classes tbody tr').length") == 1000
    seconds = browser.execute_script(
        "const start = performance.now(); const box = document.getElementById('search'); box.value = '099';"
        "box.dispatchEvent(new Event('input')); return (performance.now() - start) / 1000"
    )
    assert seconds < 5
    assert sorted(first_classes(browser, 99)) == ["class 0099", *(f"class 099{digit}" for digit in range(10))]
