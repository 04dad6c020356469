"""The page with the metric to drag: its formulas against Python's, and a drag in a real browser."""

import asyncio
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from finslerconv import balls
from finslerconv.metrics import Randers

STATIC = Path(__file__).parents[2] / "docs" / "_static" / "explorer"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")

COMPUTE = """
const randers = require(process.argv[1]);
const {metrics, vectors, k} = JSON.parse(require("fs").readFileSync(0));
console.log(JSON.stringify(metrics.map((metric) => ({
  norm: vectors.map((v) => randers.norm(metric, v)),
  dualNorm: vectors.map((p) => randers.dualNorm(metric, p)),
  lambda: randers.lambda(metric),
  zermelo: randers.zermelo(metric),
  dual: randers.dual(metric),
  area: randers.area(metric),
  asymmetry: randers.asymmetry(metric),
  boundary: randers.boundary(metric, 16),
  radial: randers.maps.radial(metric, randers.sets.concentric(k)),
  affine: randers.maps.affine(metric, randers.sets.sunflower(k)),
  lattice: randers.sets.lattice(k),
  polar: randers.sets.polar(k),
  filter: randers.filter(randers.maps.radial(metric, randers.sets.lattice(k)), 8),
}))));
"""


def random_metrics(n):
    rng = np.random.default_rng(0)
    A = rng.normal(size=(n, 2, 2))
    M = A @ A.mT + 0.2 * np.eye(2)
    omega = rng.normal(size=(n, 2))
    lengths = np.sqrt(np.einsum("ni,nij,nj->n", omega, np.linalg.inv(M), omega))
    return M, omega * (rng.uniform(0, 0.9, n) / lengths)[:, None]


@needs_node
@pytest.mark.parametrize("k", [3, 5])
def test_the_formulas_are_those_of_the_library(k):
    M, omega = random_metrics(20)
    vectors = np.random.default_rng(1).normal(size=(30, 2))
    given = {
        "metrics": [{"M": m.tolist(), "omega": w.tolist()} for m, w in zip(M, omega, strict=True)],
        "vectors": vectors.tolist(),
        "k": k,
    }
    command = ["node", "-e", COMPUTE, str(STATIC / "randers.js")]
    output = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True)
    assert output.returncode == 0, output.stderr
    for m, w, found in zip(M, omega, json.loads(output.stdout), strict=True):
        metric = Randers(m, w)
        h, W = metric.zermelo()
        dual = metric.dual()
        wanted = {
            "norm": metric.norm(vectors),
            "dualNorm": metric.dual_norm(vectors),
            "lambda": 1 - w @ np.linalg.solve(m, w),
            "area": balls.Ellipse.of(metric).area,
            "asymmetry": metric.asymmetry_ratio(),
            "boundary": balls.Ellipse.of(metric).boundary(16),
            "radial": balls.radial(metric, balls.concentric(k).points),
            "affine": balls.affine(metric, balls.sunflower(k * k).points),
            "lattice": balls.lattice(k).points,
            "polar": balls.polar(k, k).points,
        }
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-10, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(found["zermelo"]["h"], h, rtol=1e-10)
        np.testing.assert_allclose(found["zermelo"]["W"], W, rtol=1e-10)
        np.testing.assert_allclose(found["dual"]["M"], dual.M, rtol=1e-10)
        np.testing.assert_allclose(found["dual"]["omega"], dual.omega, rtol=1e-10)


@needs_node
def test_the_filter_is_bilinear_interpolation_of_an_impulse():
    torch = pytest.importorskip("torch")
    from finslerconv.ops import deform_conv2d

    M, omega = random_metrics(3)
    given = {
        "metrics": [{"M": m.tolist(), "omega": w.tolist()} for m, w in zip(M, omega, strict=True)],
        "vectors": [],
        "k": 3,
    }
    command = ["node", "-e", COMPUTE, str(STATIC / "randers.js")]
    output = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True)
    assert output.returncode == 0, output.stderr
    taps = balls.lattice(3).points
    for m, w, found in zip(M, omega, json.loads(output.stdout), strict=True):
        positions = balls.radial(Randers(m, w), taps)
        # The response to an impulse in each pixel is the filter, read at the middle.
        impulses = torch.eye(289, dtype=torch.float64).reshape(289, 1, 17, 17)
        offset = torch.tensor(positions - taps).reshape(1, 18, 1, 1).expand(289, 18, 17, 17)
        weight = torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64)
        wanted = deform_conv2d(impulses, offset, weight, padding=1)[:, 0, 8, 8]
        np.testing.assert_allclose(found["filter"], wanted.numpy(), atol=1e-12)


class Page:
    """A tab of the browser, driven over its debugging protocol."""

    def __init__(self, connection):
        self.connection = connection
        self.count = 0

    async def call(self, method, **parameters):
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        await self.connection.write_message(json.dumps(message))
        while True:
            answer = json.loads(await self.connection.read_message())
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    async def evaluate(self, expression):
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def metric(self):
        return json.loads(
            await self.evaluate("document.querySelector('[data-explorer]').dataset.metric")
        )

    async def centre(self, handle):
        place = await self.evaluate(
            f"(() => {{ const e = document.querySelector('[data-handle={handle}] .explorer-knob');"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        return np.array(place)

    async def mouse(self, kind, place):
        x, y = map(float, place)
        buttons = {"button": "left", "buttons": 1, "clickCount": 1}
        await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **buttons)

    async def touch(self, kind, place=None):
        points = [] if place is None else [dict(zip("xy", map(float, place), strict=True))]
        await self.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    async def drag(self, handle, target):
        await self.mouse("mousePressed", await self.centre(handle))
        await self.mouse("mouseMoved", target)
        await self.mouse("mouseReleased", target)

    async def choose(self, label, option):
        await self.evaluate(
            "(() => { const s = [...document.querySelectorAll('label')]"
            f".find((l) => l.textContent.startsWith('{label}')).querySelector('select');"
            f"s.value = '{option}'; s.dispatchEvent(new Event('change')); }})()"
        )

    async def slider(self, handle):
        """Return what a screen reader is told of a handle: the range, the number and the words."""
        names = ("valuemin", "valuemax", "valuenow", "valuetext")
        *numbers, words = await self.evaluate(
            f"{list(names)}.map((name) => "
            f"document.querySelector('[data-handle={handle}]').getAttribute('aria-' + name))"
        )
        return *map(float, numbers), words

    async def key(self, name):
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name)


@pytest.fixture
def browse(tmp_path):
    """Run a coroutine function on the page in a browser of its own, without a network."""
    websocket = pytest.importorskip("tornado.websocket")
    page = tmp_path / "page.html"
    files = (STATIC / name for name in ("randers.js", "explorer.js"))
    scripts = "".join(f"<script src='{file}'></script>" for file in files)
    style = f"<link rel='stylesheet' href='{STATIC / 'explorer.css'}'>"
    page.write_text(
        "<!doctype html><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"{style}<div data-explorer></div>{scripts}"
    )

    def run(actions, width=900):
        profile = tmp_path / "profile"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        offline = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
        browser = subprocess.Popen(
            [BROWSER, *options, offline, f"--user-data-dir={profile}", f"--window-size={width},900",
             page.as_uri()],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            address = _debugging_address(profile / "DevToolsActivePort")
            asyncio.run(_act(websocket, address, page.as_uri(), actions))
        finally:
            browser.kill()
            browser.communicate()

    return run


def _debugging_address(port_file):
    for _ in range(300):
        if port_file.exists() and "\n" in port_file.read_text():
            return f"127.0.0.1:{port_file.read_text().splitlines()[0]}"
        time.sleep(0.1)
    raise TimeoutError("the browser did not open its debugging port")


async def _act(websocket, address, uri, actions):
    from tornado.httpclient import AsyncHTTPClient

    for _ in range(100):
        answer = await AsyncHTTPClient().fetch(f"http://{address}/json")
        tabs = [tab for tab in json.loads(answer.body) if tab["url"] == uri]
        if tabs:
            break
        await asyncio.sleep(0.1)
    connection = await websocket.websocket_connect(tabs[0]["webSocketDebuggerUrl"])
    page = Page(connection)
    for _ in range(100):
        if await page.evaluate("Boolean(document.querySelector('[data-metric]'))"):
            break
        await asyncio.sleep(0.1)
    await actions(page)
    connection.close()


async def _check_consistent(page):
    """Assert that what the page shows belongs to the metric that it says it has."""
    now = await page.metric()
    metric = Randers(np.array(now["M"]), np.array(now["omega"]))
    positions = json.loads(
        await page.evaluate("document.querySelector('[data-explorer]').dataset.positions")
    )
    wanted = balls.radial(metric, balls.concentric(5).points)
    np.testing.assert_allclose(positions, wanted, atol=1e-12)
    outline = await page.evaluate("document.querySelector('.explorer-ball').getAttribute('d')")
    rim = np.array(re.findall(r"[-\d.]+", outline), float).reshape(-1, 2)[:, ::-1]
    np.testing.assert_allclose(metric.norm(rim), 1, atol=2e-3)  # printed to four digits
    shown = await page.evaluate("document.querySelector('[data-value=lambda]').textContent")
    assert float(shown) == pytest.approx(1 - metric.omega_norm() ** 2, abs=6e-4)
    return metric


@pytest.mark.slow
@needs_browser
def test_dragging_with_the_mouse_moves_the_metric(browse):
    async def actions(page):
        before = await _check_consistent(page)
        start = await page.centre("raised")
        await page.mouse("mousePressed", start)
        for step in range(1, 6):
            await page.mouse("mouseMoved", start + np.array([3, 4]) * step)
        await page.mouse("mouseReleased", start + np.array([15, 20]))
        after = await _check_consistent(page)
        # Only omega was dragged: M^-1 omega went right and down.
        np.testing.assert_allclose(after.M, before.M)
        moved = np.linalg.solve(after.M, after.omega) - np.linalg.solve(before.M, before.omega)
        assert (moved > 0.1).all()
        # The pointer is up: moving on changes nothing.
        await page.mouse("mouseMoved", start)
        assert (await page.metric())["omega"] == after.omega.tolist()

    browse(actions)


@pytest.mark.slow
@needs_browser
def test_an_axis_and_the_one_form_far_outside_stay_in_their_range(browse):
    async def actions(page):
        for handle, target in (("axis0", [4000.0, 30.0]), ("omega", [2000.0, 2000.0])):
            await page.drag(handle, target)
            metric = await _check_consistent(page)
        assert metric.omega_norm() == pytest.approx(0.65)
        assert np.linalg.eigvalsh(metric.M).min() == pytest.approx(1 / 2**2)

    browse(actions)


def extreme_metrics(axes, most, n=60):
    """Return metrics with half-axes at the ends of their range, turned, of the longest one-form."""
    turns = np.linspace(0, np.pi, n, endpoint=False)
    ways = np.linspace(0, 2 * np.pi, n, endpoint=False)
    long, short, turn, way = (
        grid.ravel() for grid in np.meshgrid([axes[1]], axes, turns, ways, indexing="ij")
    )
    frame = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]).transpose(
        2, 0, 1
    )
    half_axes = np.stack((long, short), axis=-1)
    M = frame / half_axes[:, None] ** 2 @ frame.mT
    raised = most * half_axes * np.stack((np.cos(way), np.sin(way)), axis=-1)
    return Randers(M, (M @ frame @ raised[..., None])[..., 0])


@pytest.mark.slow
@needs_browser
def test_whatever_can_be_dragged_to_fits_the_panels(browse):
    async def actions(page):
        lower, upper, *_ = await page.slider("axis0")
        assert (lower, upper) == (await page.slider("axis1"))[:2]
        metric = extreme_metrics((lower, upper), (await page.slider("raised"))[1])
        views = await page.evaluate(
            "[...document.querySelectorAll('svg')].map((e) => e.viewBox.baseVal.width / 2)"
        )
        dot = await page.evaluate(
            "document.querySelector('.explorer-samples circle').r.baseVal.value"
        )
        tangent, cotangent, pixels = views
        assert abs(balls.Ellipse.of(metric).boundary(180)).max() < tangent
        assert abs(balls.Ellipse.of(metric.dual()).boundary(180)).max() < cotangent
        farthest = 0
        for points in (balls.lattice(3).points, balls.concentric(5).points):
            for carry in (balls.radial, balls.affine):
                farthest = max(farthest, abs(carry(metric, points[:, None])).max())
        assert farthest + dot < tangent
        # A sample weighs on the pixels before and behind it.
        assert np.ceil(farthest) + 0.5 <= pixels
        # And not because the panels are far too large.
        assert farthest > 0.9 * tangent

    browse(actions)


@needs_browser
def test_every_reference_set_is_offered_and_drawn(browse):
    async def actions(page):
        metric = await page.metric()
        metric = Randers(np.array(metric["M"]), np.array(metric["omega"]))
        for name in ("lattice", "concentric", "polar", "sunflower"):
            await page.choose("reference set", name)
            found = await page.evaluate(
                "[...document.querySelectorAll('.explorer-samples circle')].map("
                "(c) => [c.cy.baseVal.value, c.cx.baseVal.value])"
            )
            wanted = balls.radial(metric, balls.reference_set(name, 5).points)
            np.testing.assert_allclose(found, wanted, atol=1e-5)  # SVG has single precision

    browse(actions)


@needs_browser
def test_nothing_covers_the_wind_and_the_pixel(browse):
    async def actions(page):
        await page.choose("reference set", "sunflower")
        await page.choose("kernel", "11")
        # Dots are apart, and what is later in the document is drawn on top.
        parts = await page.evaluate(
            "[...document.querySelector('svg').querySelectorAll('.explorer-samples, .explorer-wind,"
            "[data-handle], .explorer-origin')].map((e) => e.getAttribute('class'))"
        )
        assert parts == [
            "explorer-samples", "explorer-wind", *["explorer-handle"] * 3, "explorer-origin",
        ]  # fmt: skip
        pixel, knob, dot = await page.evaluate(
            "['.explorer-origin', '.explorer-knob', '.explorer-samples circle'].map("
            "(name) => document.querySelector(name).r.baseVal.value)"
        )
        metric = await page.metric()
        area = balls.Ellipse.of(Randers(np.array(metric["M"]), np.zeros(2))).area
        assert 2 * dot < np.sqrt(area / 11**2)
        # A handle at the pixel leaves it to be seen, and can still be taken.
        assert pixel <= knob / 2
        start = await page.centre("raised")
        target = await page.evaluate(
            "(() => { const b = document.querySelector('.explorer-origin').getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for place, to in ((start, target), (target, start)):
            await page.mouse("mousePressed", place)
            await page.mouse("mouseMoved", to)
            await page.mouse("mouseReleased", to)
            if to is target:
                np.testing.assert_allclose((await page.metric())["omega"], 0, atol=1e-2)
        np.testing.assert_allclose((await page.metric())["omega"], metric["omega"], atol=1e-2)

    browse(actions)


@needs_browser
def test_a_screen_reader_hears_where_the_handles_are(browse):
    async def actions(page):
        await page.drag("axis1", await page.centre("axis1") + np.array([12, 30]))
        await page.drag("omega", await page.centre("omega") + np.array([20, -5]))
        metric = await _check_consistent(page)
        axes = [await page.slider(name) for name in ("axis0", "axis1")]
        half_axes = np.linalg.eigvalsh(metric.M) ** -0.5
        np.testing.assert_allclose(sorted(a[2] for a in axes), sorted(half_axes), atol=6e-4)
        for name, place in (
            ("omega", metric.omega),
            ("raised", np.linalg.solve(metric.M, metric.omega)),
        ):
            low, high, now, words = await page.slider(name)
            assert low <= now <= high
            assert now == pytest.approx(metric.omega_norm(), abs=6e-4)
            said = [float(x) for x in re.findall(r"-?\d+\.\d+", words.replace("−", "-"))]
            np.testing.assert_allclose(said, [now, *place], atol=6e-4)
        # Every handle has its name beside it.
        labels = await page.evaluate(
            "[...document.querySelectorAll('[role=slider] text')].map((e) => e.textContent)"
        )
        assert labels == ["axis 1", "axis 2", "M⁻¹ω", "ω"]

    browse(actions)


@pytest.mark.slow
@needs_browser
def test_touch_and_keys_move_it_too(browse):
    async def actions(page):
        before = await page.metric()
        start = await page.centre("axis1")
        await page.touch("touchStart", start)
        await page.touch("touchMove", start + np.array([10, -15]))
        await page.touch("touchEnd")
        touched = await _check_consistent(page)
        assert touched.M.tolist() != before["M"]
        await page.evaluate("document.querySelector('[data-handle=omega]').focus()")
        await page.key("ArrowRight")
        keyed = await _check_consistent(page)
        assert keyed.omega[1] - touched.omega[1] == pytest.approx(0.05)
        await page.evaluate("document.querySelector('.explorer-controls button').click()")
        assert (await page.metric())["M"] == before["M"]

    browse(actions, width=390)


@needs_browser
def test_nothing_is_wider_than_a_phone(browse):
    async def actions(page):
        await page.call(
            "Emulation.setDeviceMetricsOverride",
            width=390, height=800, deviceScaleFactor=1, mobile=True,
        )  # fmt: skip
        assert await page.evaluate("document.documentElement.scrollWidth") <= 390

    browse(actions)
