"""The page as visitors and programs use it: on a server of its own, in a browser, and by many at once."""

import base64
import io
import json
import os
import re
import shutil
import statistics
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from huggingface_hub.utils import httpx
from PIL import Image

from hub_cards.demo import CHECKPOINT, SPACE

gradio_client = pytest.importorskip("gradio_client")
BIRD = SPACE / "examples" / "bird_03.png"
REST = [128, 16, 1.0, 0, False, False]  # the controls of the page as they stand
MARK = {"_type": "gradio.FileData"}


@pytest.fixture
def client(server, tmp_path):
    return gradio_client.Client(server.url, verbose=False, download_files=str(tmp_path))


def decoded(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def ask(client, api_name="/segment", path=BIRD, **options):
    return client.predict(picture=gradio_client.handle_file(str(path)), api_name=api_name, **options)


# For programs


def test_segment_answers_as_the_viewer(client, viewer, bird):
    from part_viewer import PartOptions

    viewed = viewer.view(bird, BIRD.name, 128, PartOptions())
    answer = ask(client)
    assert np.array_equal(np.asarray(decoded(answer.pop("part_map"))), np.asarray(viewer.mask_files(viewed)[0]))
    assert answer == json.loads(json.dumps(viewer.mask_files(viewed)[1]))
    few = ask(client, max_parts=3, merge_threshold=0.9, min_area_percent=5, smooth=True, named=True, size=192)
    options = PartOptions(3, 0.9, 5, True, True)
    assert few["annotations"] == viewer.mask_files(viewer.view(bird, BIRD.name, 192, options))[1]["annotations"]
    assert {one["name"] for one in few["categories"]} & set(viewer.dictionary.names)


def test_click_answers_with_the_register_and_its_map(client, viewer, bird):
    from part_viewer import PartOptions

    viewed = viewer.view(bird, BIRD.name, 128, PartOptions())
    for x, y in ((64, 60), (3, 120)):
        answer = ask(client, "/click", x=x, y=y)
        register = viewed.register_at(x * 5, y * 5)
        assert answer["register"] == register and answer["head"] == register // 4
        assert np.array_equal(np.asarray(decoded(answer["map"])), np.asarray(viewer.register_map(viewed, register)))


def test_a_program_is_told_what_is_wrong_and_the_server_goes_on(client, server, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.jpg").write_bytes(_jpeg()[:1500])
    wrong = [
        ({"path": tmp_path / "text.png"}, "This is no JPEG, PNG"),
        ({"path": tmp_path / "cut.jpg"}, "damaged or was cut off"),
        ({"max_parts": 99}, "Value 99 is greater than maximum value 16"),
        ({"size": 5000}, "not in the list of choices"),
        ({"api_name": "/click", "x": 128, "y": 0}, "x=128, y=0 is not in the picture, 128 x 128 pixels"),
    ]
    for options, message in wrong:
        with pytest.raises(gradio_client.exceptions.AppError, match=message):
            ask(client, **options)
    with pytest.raises(gradio_client.exceptions.AppError, match="No picture was sent"):
        client.predict(picture=None, api_name="/segment")
    assert len(ask(client)["annotations"]) > 3
    assert "picture_upload.UploadRefused" not in server.log  # refusals are no errors of the server


def test_files_of_the_server_cannot_be_reached(server):
    """By their path, marked as gradio marks an upload or not, by an address, and by the route of files."""
    for path in (str(BIRD), "/etc/passwd", "../../etc/passwd", f"{server.url}favicon.ico", f"file://{BIRD}"):
        for payload in ({"path": path, "meta": MARK}, {"path": path}, {"url": path, "path": None, "meta": MARK}):
            event = httpx.post(f"{server.url}gradio_api/call/segment", json={"data": [payload, *REST]}).json()["event_id"]
            answer = httpx.get(f"{server.url}gradio_api/call/segment/{event}").text
            assert answer.startswith("event: error"), (payload, answer)
            assert "passwd" not in answer and "This is no JPEG" not in answer and "annotations" not in answer
    for path in ("/etc/passwd", str(BIRD), "app.py", str(CHECKPOINT / "config.json"), str(server.log_path)):
        assert httpx.get(f"{server.url}gradio_api/file={path}").status_code == 403
    assert httpx.get(f"{server.url}gradio_api/file=../../../../etc/passwd").status_code in (403, 404)


def test_what_is_too_large_is_not_taken(server):
    """A file, several files in one request, and a request that is no upload, told beforehand or not."""
    upload = f"{server.url}gradio_api/upload"
    answer = httpx.post(upload, files={"files": ("large.png", bytes(20_000_001))}, timeout=30)
    assert answer.status_code == 413 and "20000000 bytes" in answer.text
    many = [("files", (f"{number}.png", bytes(8_000_000))) for number in range(3)]
    assert httpx.post(upload, files=many, timeout=30).status_code == 413
    answer = httpx.post(f"{server.url}gradio_api/queue/join", content=bytes(1_000_001), timeout=30)
    assert answer.status_code == 413 and "at most 1000000 bytes" in answer.text
    chunks = iter([bytes(600_000)] * 2)  # FastAPI makes its own error of the one that stops it reading on
    assert httpx.post(f"{server.url}gradio_api/queue/join", content=chunks, timeout=30).status_code in (400, 413)


def test_there_is_no_way_past_the_queue_and_none_to_what_others_saw(server, client):
    payload = {"data": [{"path": str(BIRD), "meta": MARK}, *REST]}
    assert httpx.post(f"{server.url}gradio_api/run/segment", json=payload).status_code == 404
    for route in ("gradio_api/deep_link?session_hash=x", "gradio_api/runs", "monitoring", "gradio_api/monitoring/summary"):
        answer = httpx.get(f"{server.url}{route}")
        assert answer.status_code in (403, 404), (route, answer.status_code, answer.text[:200])
    assert ask(client)["info"] == {"description": "Parts by rats-tiny-synthetic, without labels"}  # no path of the server


def test_thirty_at_once_are_all_answered(server):
    def segment(number):
        return len(ask(gradio_client.Client(server.url, verbose=False), max_parts=1 + number % 5)["annotations"])

    with ThreadPoolExecutor(30) as pool:
        assert list(pool.map(segment, range(30))) == [1 + number % 5 for number in range(30)]


def _png_of_size(width, height):
    """A PNG that promises so many pixels and holds none."""
    head = struct.pack(">4sIIBBBBB", b"IHDR", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def _jpeg():
    file = io.BytesIO()
    Image.effect_noise((256, 256), 90).save(file, format="JPEG")
    return file.getvalue()


@pytest.fixture
def page(viewer):
    from demo_page import DemoPage

    return DemoPage(viewer, [str(BIRD)])


def test_what_is_not_kept_any_more_is_told(page, viewer, tmp_path):
    """A deleted file, and a visitor who is not remembered, wherever that shows."""
    page.picture.GRADIO_CACHE = str(tmp_path)
    gone = page.picture.preprocess(page.picture.data_model(path=str(tmp_path / "gone.png")))
    assert "not kept any more" in gone.message
    gradio = pytest.importorskip("gradio")
    for ask_page in (lambda: page.pick_place(None, None), lambda: page.show_register(None, 3)):
        with pytest.raises(gradio.Error, match="not kept any more"):
            ask_page()
    with pytest.raises(gradio.Error, match="not kept any more"):
        page.other_parts(None, 3, 128, 16, 1.0, 0, False, False)
    assert page.other_parts(None, None, 128, 16, 1.0, 0, False, False) == {page.viewed: None}  # there is no picture yet
    for name in page.tab:
        assert page.show_tab(name, None, viewer.dictionary.names[0], 0, 0)[page.shown_tab] == name
    assert page.blocks.delete_cache == (60, 600)


# In a browser


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on this machine; install it (Debian: apt install chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page that was opened; every request of it is remembered."""

    def __init__(self, browser, url, width=1280, height=1000, **options):
        self.context = browser.new_context(viewport={"width": width, "height": height}, **options)
        self.context.set_default_timeout(15_000)
        self.page = self.context.new_page()
        self.hosts, self.errors = set(), []
        self.page.on("request", lambda request: self.hosts.add(httpx.URL(request.url).host))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector("#examples button")

    def source(self, selector):
        return self.page.locator(selector).first.get_attribute("src")

    def drawn(self, selector, before=None):
        """Waits until a picture is drawn, another than before if that is given; its address."""
        self.page.wait_for_function(
            """([selector, before]) => {
                const image = document.querySelector(selector)
                return image && image.complete && image.naturalWidth && image.getAttribute('src') != before
            }""",
            arg=[selector, before],
        )
        return self.source(selector)

    def pick_example(self, picture=BIRD):
        names = sorted(path.name for path in picture.parent.glob("*.png"))
        self.page.locator("#examples button").nth(names.index(picture.name)).click()
        self.drawn("#register-map img")
        self.drawn("#in-examples img")

    def open(self, tab):
        self.page.get_by_role("tab", name=tab).click()

    def click_at(self, x, y):
        """Clicks at shares of the overlay's width and height."""
        box = self.page.locator("#overlay img").bounding_box()
        self.page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])

    def chosen(self):
        return int(re.search(r"\d+", self.page.locator("#register label.selected").inner_text())[0])

    def legend(self):
        return self.page.locator("#legend li").all_inner_texts()

    def wait_for_parts(self, count):
        self.page.wait_for_function("count => document.querySelectorAll('#legend li').length == count", arg=count)

    def keep(self, name):
        """Looks at a screenshot, and saves it for the documentation if RATS_SCREENSHOTS names a folder for them."""
        picture = Image.open(io.BytesIO(self.page.screenshot(full_page=True))).convert("RGB")
        assert np.asarray(picture).std() > 20
        if folder := os.environ.get("RATS_SCREENSHOTS"):
            picture.save(Path(folder) / f"{name}.jpg", quality=80)


@pytest.fixture
def visit(chromium, server):
    """Opens the page; afterwards nothing may have failed, and no other host may have been asked."""
    visits = []

    def open_page(**options):
        visits.append(Visit(chromium, server.url, **options))
        return visits[-1]

    yield open_page
    for one in visits:
        one.context.close()
        assert one.hosts - {""} == {"127.0.0.1"} and not one.errors


@pytest.fixture(scope="module")
def seen_bird(viewer, bird):
    from part_viewer import PartOptions

    return viewer.view(bird, BIRD.name, 128, PartOptions())


@pytest.mark.slow
def test_a_click_lights_up_the_register_of_the_place_within_300_ms(visit, seen_bird):
    """Median of twelve clicks at the middles of patches, each of another register than the one before."""
    seen = visit()
    seen.pick_example()
    places = [(x, y) for x in range(20, 640, 40) for y in range(20, 640, 40)]
    registers = {place: seen_bird.register_at(*place) for place in places}
    clicks = [next(place for place in places if registers[place] == part["register"]) for part in seen_bird.segments[1:5]]
    times = []
    for x, y in clicks * 3:
        before, started = seen.source("#register-map img"), time.perf_counter()
        seen.click_at(x / 640, y / 640)
        seen.drawn("#register-map img", before)
        times.append(time.perf_counter() - started)
        assert seen.chosen() == registers[x, y]
    print(f"click to map: median {1000 * statistics.median(times):.0f} ms, at most {1000 * max(times):.0f} ms")
    assert statistics.median(times) < 0.3
    seen.keep("demo_parts")


@pytest.mark.slow
def test_controls_change_parts_and_every_tab_follows(visit, viewer, seen_bird):
    seen = visit()
    seen.pick_example()
    seen.wait_for_parts(len(seen_bird.segments))
    seen.open("Compare")
    seen.drawn("#compare img")
    seen.keep("demo_compare")
    seen.page.locator("#most-parts input[type=number]").fill("3")
    seen.page.keyboard.press("Enter")
    seen.wait_for_parts(3)
    seen.open("All registers")
    seen.page.wait_for_function("document.querySelectorAll('#gallery .grid-container button').length == 3")
    seen.keep("demo_registers")
    seen.page.locator("#smooth input").check()
    seen.open("Download")
    seen.page.wait_for_selector("#files a")
    seen.keep("demo_download")


@pytest.mark.slow
def test_a_register_is_picked_in_the_gallery(visit, seen_bird):
    seen = visit()
    seen.pick_example()
    seen.open("All registers")
    before = seen.source("#register-map img")
    seen.page.locator("#gallery .grid-container button").nth(2).click()
    seen.drawn("#register-map img", before)
    assert seen.page.locator("#overlay").is_visible() and seen.chosen() == seen_bird.segments[2]["register"]


@pytest.mark.slow
def test_entries_are_browsed_found_and_name_parts(visit, viewer, seen_bird):
    seen = visit()
    seen.pick_example()
    seen.open("Dictionary")
    before = seen.drawn("#entry-map img")
    other = next(row[0] for row in viewer.entries(seen_bird) if row[0] != viewer.dictionary.names[0])
    seen.page.locator("#entries").get_by_text(other, exact=True).first.click()
    seen.drawn("#entry-map img", before)
    assert seen.page.locator("#entry input").input_value() == other
    seen.keep("demo_dictionary")
    seen.page.locator("#named input").check()
    seen.open("Parts")
    seen.page.wait_for_function("name => document.querySelector('#legend').innerText.includes(name)", arg="(register")
    assert any(name in line for line in seen.legend() for name in viewer.dictionary.names)


@pytest.mark.slow
def test_attention_is_shown_by_layer_and_head(visit):
    seen = visit()
    seen.pick_example()
    seen.open("Attention")
    seen.drawn("#compress img")
    seen.drawn("#broadcast img")
    assert "register 0," in seen.page.locator("#compress").inner_text()
    seen.keep("demo_attention")
    before = seen.drawn("#communicate img")
    seen.page.locator("#head label").nth(2).click()
    seen.drawn("#communicate img", before)
    assert "register 8," in seen.page.locator("#compress").inner_text()


@pytest.mark.slow
def test_masks_are_downloaded_at_the_size_of_the_picture(visit, viewer, tmp_path, bird):
    from part_viewer import PartOptions

    bird.resize((300, 200)).save(tmp_path / "my bird.png")
    seen = visit()
    seen.page.locator("#picture input[type=file]").set_input_files(str(tmp_path / "my bird.png"))
    seen.drawn("#register-map img")
    seen.open("Download")
    links = seen.page.locator("#files a")
    links.nth(1).wait_for()
    files = {}
    for number in range(2):
        with seen.page.expect_download() as download:
            links.nth(number).click()
        files[Path(download.value.suggested_filename).suffix] = Path(download.value.path())
    expected = viewer.view(bird.resize((300, 200)), "my bird.png", 128, PartOptions())
    assert np.array_equal(np.asarray(Image.open(files[".png"])), np.asarray(viewer.mask_files(expected)[0]))
    told = json.loads(files[".json"].read_text())
    assert told["annotations"] == viewer.mask_files(expected)[1]["annotations"]


@pytest.mark.slow
def test_each_bad_file_is_told_and_the_page_goes_on(visit, server, tmp_path):
    bad = {"text.png": b"no picture", "cut.jpg": _jpeg()[:1500], "empty.png": b"", "drawing.svg": b"<svg></svg>"}
    bad |= {"large.jpg": _jpeg() + bytes(20_000_000), "bomb.png": _png_of_size(60_000, 60_000)}
    seen = visit()
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        seen.page.locator("#picture input[type=file]").set_input_files(str(tmp_path / name))
        toast = seen.page.get_by_test_id("toast-body").first
        toast.wait_for()
        told = toast.inner_text()
        assert (
            re.search("[Ss]end|[Ss]hrink|maximum", told)
            and str(tmp_path) not in told
            and "Error" not in seen.page.locator("#overlay").inner_text()
        ), told
        if name == "text.png":
            seen.keep("demo_refusal")
        seen.page.get_by_test_id("toast-close").first.click()
        toast.wait_for(state="detached")
        seen.page.wait_for_function("!document.querySelector('#picture img')")  # it is taken away
    seen.pick_example()
    assert seen.legend()


@pytest.mark.slow
def test_the_keyboard_is_enough(visit):
    seen = visit()
    button = seen.page.locator("#examples button").nth(2)
    button.focus()
    seen.page.keyboard.press("Enter")
    before = seen.drawn("#register-map img")
    first = seen.chosen()
    seen.page.locator("#register input:checked").focus()
    seen.page.keyboard.press("Tab")
    seen.page.keyboard.press("Space")
    seen.drawn("#register-map img", before)
    assert seen.chosen() != first
    seen.page.get_by_role("tab", name="Parts").focus()
    seen.page.keyboard.press("Tab")
    seen.page.keyboard.press("Enter")
    seen.drawn("#compare img")
    parts = len(seen.page.locator("#legend li").all())
    slider = seen.page.locator("#most-parts input[type=range]")
    slider.focus()
    for _ in range(16 - parts + 1):
        seen.page.keyboard.press("ArrowLeft")
    seen.wait_for_parts(parts - 1)


@pytest.mark.slow
def test_a_phone_shows_all_of_it(visit):
    seen = visit(width=390, height=844, is_mobile=True, has_touch=True)
    seen.pick_example()
    assert seen.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    overlay = seen.page.locator("#overlay img")
    overlay.scroll_into_view_if_needed()
    before, box = seen.source("#register-map img"), overlay.bounding_box()
    assert box["width"] > 300
    seen.page.touchscreen.tap(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    seen.drawn("#register-map img", before)
    seen.keep("demo_phone")


# By many


@pytest.mark.slow
def test_fifty_visitors_for_a_minute_lose_nothing_and_memory_stays_flat(server):
    """Each segments and clicks, again and again; what the server holds after 20 seconds it holds in the end."""
    clients = [gradio_client.Client(server.url, verbose=False) for _ in range(50)]
    process, started = psutil.Process(server.process.pid), time.monotonic()
    memory, answered, seconds = [], [0] * 50, []

    def visitor(number):
        while time.monotonic() - started < 60:
            asked = time.monotonic()
            if answered[number] % 2:
                assert ask(clients[number], "/click", x=3 + number, y=60)["register"] is not None
            else:
                assert len(ask(clients[number], max_parts=3)["annotations"]) == 3
            seconds.append(time.monotonic() - asked)
            answered[number] += 1

    def watch():
        while time.monotonic() - started < 60:
            memory.append((time.monotonic() - started, process.memory_info().rss / 2**20))
            time.sleep(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(50) as pool:
        for _ in pool.map(visitor, range(50)):  # raises what a visitor ran into
            pass
    watcher.join()
    settled = statistics.median(held for second, held in memory if 20 < second < 30)
    ended = statistics.median(held for second, held in memory if second > 50)
    print(
        f"{sum(answered)} requests of 50 visitors in a minute; an answer takes {statistics.median(seconds):.1f} s (median), "
        f"{max(seconds):.1f} s at most; {settled:.0f} MiB after 25 s, {ended:.0f} MiB in the end"
    )
    assert min(answered) >= 2
    assert ended < 1.1 * settled + 20


@pytest.mark.slow
def test_who_finds_the_queue_full_is_told_and_the_others_are_answered(server, client):
    uploaded = httpx.post(f"{server.url}gradio_api/upload", files={"files": ("bird.png", BIRD.read_bytes())}).json()[0]
    payload = {"data": [{"path": uploaded, "meta": MARK}, *REST]}
    with ThreadPoolExecutor(40) as pool:
        asked = list(
            pool.map(lambda _: httpx.post(f"{server.url}gradio_api/call/segment", json=payload, timeout=60), range(300))
        )
    refused = [answer for answer in asked if answer.status_code != 200]
    assert refused and all("Queue is full" in answer.text for answer in refused)
    events = [answer.json()["event_id"] for answer in asked if answer.status_code == 200]
    assert len(events) >= 100

    def answer_of(event):
        return httpx.get(f"{server.url}gradio_api/call/segment/{event}", timeout=120).text

    with ThreadPoolExecutor(20) as pool:
        assert all(answer.startswith("event: complete") for answer in pool.map(answer_of, events[:100]))
    assert len(ask(client)["annotations"]) > 3
