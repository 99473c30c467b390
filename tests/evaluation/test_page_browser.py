"""The page in a browser, Debian's Chromium; without one these tests are skipped."""

import io
import re

import numpy as np
import pytest
from browser import Browser, find
from evaluated import HOSTILE, picture_made, result_made
from PIL import Image

from segjax.evaluation import page
from segjax.evaluation.comparison import Layer, Picture


@pytest.fixture(scope="module")
def browser():
    if not (program := find()):
        pytest.skip("no Chromium on this machine")
    with Browser(program) as opened:
        yield opened


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pages of one run, of three, and of hostile names."""
    legend = [("sky", (1, 2, 3)), ("wrong", (255, 40, 40))]
    home = tmp_path_factory.mktemp("pages")

    def written(name, runs, pictures):
        text = page.page(runs, pictures, legend, title=runs[0].name, when="2026-11-24 12:00")
        path = home / f"{name}.html"
        path.write_text(text, encoding="utf-8")
        return path

    pictures = [picture_made(f"p{i}", seed=i) for i in range(3)]
    three = [result_made(name, seed=i) for i, name in enumerate("abc")]
    of_three = [picture_made(f"p{i}", runs=("a: ", "b: ", "c: "), seed=i) for i in range(2)]
    hostile = [result_made(name, HOSTILE * 4, seed=i) for i, name in enumerate(HOSTILE)]
    of_hostile = [picture_made(name, runs=HOSTILE) for name in HOSTILE]
    many = [result_made(names=[f"class {i}" for i in range(150)])]
    return {
        "one": written("one", [result_made()], pictures),
        "three": written("three", three, of_three),
        "hostile": written("hostile", hostile, of_hostile),
        "many": written("many", many, pictures),
    }


@pytest.fixture(autouse=True)
def nothing_to_complain_of(request):
    """What the browser wrote to its console during a test, or asked the network for."""
    yield
    if "browser" in request.fixturenames:
        browser = request.getfixturevalue("browser")
        asked = [url for url in browser.requests if not url.startswith(("file:", "data:"))]
        problems, browser.problems = browser.problems, []
        assert (problems, asked) == ([], [])


CLIP = "getComputedStyle(document.querySelector('.layer.right')).clipPath"
SPLIT = "+document.querySelector('.picture input').value"


@pytest.mark.parametrize("kind", ["one", "three", "hostile", "many"])
@pytest.mark.parametrize("dark", [False, True])
def test_every_page_opens_without_a_word_and_fits_a_phone(browser, files, kind, dark):
    browser.open(files[kind], width=360, height=740, dark=dark, touch=True)
    assert browser.run("document.querySelectorAll('section').length") == 9
    assert browser.run("document.documentElement.scrollWidth") == 360
    assert browser.run("visualViewport.scale") == 1


def test_the_console_is_listened_to(browser, tmp_path):
    (tmp_path / "bad.html").write_text("<script>console.error('so'); unheard.of</script>")
    browser.open(tmp_path / "bad.html")
    problems, browser.problems = browser.problems, []
    assert len(problems) == 2 and "so" in problems[0] and "unheard" in problems[1]


def test_the_policy_holds_off_what_is_not_the_page(browser, files, tmp_path):
    text = (
        files["one"]
        .read_text()
        .replace(
            "<h1>",
            '<script>document.title = "run"</script><img src="http://127.0.0.1:9/a.png"><h1>',
        )
    )
    (tmp_path / "bad.html").write_text(text)
    browser.open(tmp_path / "bad.html")
    problems, browser.problems = browser.problems, []
    browser.requests.clear()
    assert browser.run("document.title") == "first – report"
    assert len(problems) == 2 and all("Content Security Policy" in told for told in problems)


def test_keys_move_the_split(browser, files):
    browser.open(files["one"])
    assert browser.run(CLIP) == "inset(0px 0px 0px 50%)"
    browser.run("document.querySelector('.picture input').focus()")
    for _ in range(3):
        browser.press("ArrowRight", 39)
    assert browser.run(CLIP) == "inset(0px 0px 0px 53%)"
    browser.press("Home", 36)
    assert browser.run(CLIP) == "inset(0px 0px 0px 0%)"
    told = browser.run("document.querySelector('.picture input').getAttribute('aria-valuetext')")
    assert told == "truth on the left 0 %, then prediction"


def place_of_stage(browser):
    """Where on the screen the first picture is: left, top, width, height."""
    browser.run("document.querySelector('.stage').scrollIntoView()")
    box = "document.querySelector('.stage').getBoundingClientRect()"
    return browser.run(f"(b => [b.x, b.y, b.width, b.height])({box})")


@pytest.mark.parametrize("finger", [False, True])
def test_a_finger_or_the_mouse_drags_the_split(browser, files, finger):
    browser.open(files["one"], width=390, height=844, touch=finger)
    left, top, width, height = place_of_stage(browser)
    start, end = [(left + share * width, top + height / 2) for share in (0.5, 0.8)]
    browser.drag(start, end, finger=finger)
    assert browser.run(SPLIT) == 80
    assert browser.run(CLIP) == "inset(0px 0px 0px 80%)"


def test_layers_are_chosen_by_keys(browser, files):
    browser.open(files["one"])
    browser.run("document.querySelector('input[name=right]:checked').focus()")
    browser.press("ArrowRight", 39)
    shown = "[...document.querySelectorAll('.layer.right')].map(l => l.textContent)"
    assert browser.run(shown) == ["errors"] * 3
    visible = "[...document.querySelectorAll('.layer')].filter(l => getComputedStyle(l).visibility"
    visible += " === 'visible').length"
    assert browser.run(visible) == 2 * 3


def test_layers_of_several_runs_are_chosen_from_a_list(browser, files):
    browser.open(files["three"])
    browser.run("document.querySelector('select[name=left]').focus()")
    browser.press("End", 35)
    shown = "[...document.querySelectorAll('.layer.left')].map(l => l.textContent)"
    assert browser.run(shown) == ["c: errors"] * 2


def test_what_is_seen_is_left_one_layer_and_right_another(browser, tmp_path):
    black, white = np.zeros((20, 40, 3), np.uint8), np.full((20, 40, 3), 255, np.uint8)
    shown = {"picture": black, "truth": black, "prediction": white, "errors": black}
    layers = [Layer(name, pixels, True) for name, pixels in shown.items()]
    picture = Picture("p", "worst 1", {}, layers)
    text = page.page([result_made()], [picture], [], title="t", when="")
    (tmp_path / "two.html").write_text(text)
    browser.open(tmp_path / "two.html")
    left, top, width, height = place_of_stage(browser)
    with Image.open(io.BytesIO(browser.screenshot(whole=False))) as shot:
        pixels = np.asarray(shot.convert("L"))[round(top + 0.8 * height)]
    seen = [int(pixels[round(left + share * width)]) for share in (0.1, 0.45, 0.55, 0.9)]
    assert seen == [0, 0, 255, 255]


def test_tables_sort_by_any_column_and_back(browser, files):
    browser.open(files["one"])
    column = (
        "[...document.querySelectorAll('#{} ~ .scroll tbody tr')].map(r => r.cells[{}].textContent)"
    )
    classes, iou = column.format("classes", 0), column.format("classes", 2)
    press = "document.querySelectorAll('#classes ~ .scroll th button')[{}].click()"
    assert browser.run(classes) == ["sky", "road", "tree"]
    browser.run(press.format(2))
    falling = browser.run(iou)
    assert falling[:2] == sorted(falling[:2], reverse=True) and falling[2] == "–"
    browser.run(press.format(2))
    assert browser.run(iou) == [*falling[1::-1], "–"]
    marks = (
        "[...document.querySelectorAll('#classes ~ .scroll th[aria-sort]')].map(h => h.ariaSort)"
    )
    assert browser.run(marks) == ["ascending"]
    browser.run(press.format(0))
    assert browser.run(classes) == ["road", "sky", "tree"]
    assert browser.run(marks) == ["ascending"]


def test_a_picture_can_be_made_larger(browser, files):
    browser.open(files["one"])
    width = "document.querySelector('.stage').getBoundingClientRect().width"
    before = browser.run(width)
    browser.run("document.querySelector('.picture button').click()")
    assert browser.run(width) > 2.5 * before


def test_all_can_be_read_without_scripts(browser, files):
    browser.open(files["one"], scripts=False)
    seen = "[...document.querySelectorAll('.stage img')].filter(i => i.checkVisibility()"
    seen += " && i.getBoundingClientRect().width > 100).length"
    assert browser.run(seen) == 3 * 4
    assert browser.run("document.querySelector('.layers').checkVisibility()") is False


@pytest.mark.parametrize("kind, least, most", [("one", 3, 8), ("many", 5, 12)])
def test_it_prints(browser, files, kind, least, most):
    browser.open(files[kind])
    printed = browser.pdf()
    assert printed.startswith(b"%PDF")
    assert least <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= most
    sizes = {tuple(map(float, s.split())) for s in re.findall(rb"/MediaBox \[([^]]*)\]", printed)}
    assert [(round(w), round(h)) for _, _, w, h in sizes] == [(595, 842)]


def test_on_paper_pictures_stand_side_by_side_and_folds_are_open(browser, files):
    browser.open(files["three"])
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.run("dispatchEvent(new Event('beforeprint'))")
    tops = "[...document.querySelectorAll('.stage')[0].querySelectorAll('img')].map(i => i.y)"
    assert len(set(browser.run(tops)[:4])) == 1
    assert browser.run("document.querySelectorAll('details:not([open]):not(.screen)').length") == 0
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run("document.querySelectorAll('details:not([open]):not(.screen)').length") > 0
    browser.call("Emulation.setEmulatedMedia", media="")


# Text stands out from its ground by 4.5 to 1, as WCAG's level AA asks of it.
CONTRASTS = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (colours) => {
    const [r, g, b] = rgb(colours).map((v) => v / 255).map(
      (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !node.checkVisibility() || node.closest(".stage, option, script")) continue;
    const grounds = [];
    for (let at = node; at; at = at.parentElement) {
      grounds.unshift(getComputedStyle(at).backgroundColor);
    }
    const style = getComputedStyle(node);
    const text = light([...grounds, node.closest("svg") ? style.fill : style.color]);
    const ground = light(grounds);
    const ratio = (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
    if (ratio < 4.5) found.push(`${node.tagName} ${node.textContent} ${ratio.toFixed(2)}`);
  }
  return found;
})()
"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_ground(browser, files, dark):
    browser.open(files["three"], dark=dark)
    browser.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.run(CONTRASTS) == []
    browser.run("document.documentElement.style.setProperty('--muted', '#888')")
    assert browser.run(CONTRASTS) or dark  # so that it is known to see something
