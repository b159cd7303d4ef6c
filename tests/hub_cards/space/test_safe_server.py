"""What the server refuses before gradio sees it, and whom it forgets."""

import asyncio
import os
import time
from datetime import datetime, timedelta

import pytest
from huggingface_hub.utils import httpx

pytest.importorskip("gradio")


@pytest.fixture(scope="module")
def safe_server():
    import safe_server

    return safe_server


async def everything(scope, receive, send):
    """An app that reads a request to its end and says how long it was."""
    length = 0
    while True:
        message = await receive()
        length += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})


def answer_of(guard, path, bodies, headers=()):
    messages = [{"type": "http.request", "body": body, "more_body": True} for body in bodies]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(guard({"type": "http", "path": path, "method": "POST", "headers": list(headers)}, receive, send))
    return sent[0]["status"], sent[1]["body"].decode()


@pytest.mark.parametrize(
    "path, bodies, headers, status",
    [
        ("/gradio_api/queue/join", [b"1" * 1_000_000], [], 200),
        ("/gradio_api/queue/join", [b"1" * 600_000, b"1" * 600_000], [], 413),
        ("/gradio_api/queue/join", [], [(b"content-length", b"1000001")], 413),
        ("/gradio_api/queue/join", [], [(b"content-length", b"-1")], 413),
        ("/gradio_api/upload", [b"1" * 1_500_000], [], 200),
        ("/gradio_api/upload", [b"1" * 1_500_000, b"1" * 1_500_000], [], 413),
        ("/gradio_api/deep_link", [], [], 404),
        ("/gradio_api/deep_link/", [], [], 404),
        ("/gradio_api/process_recording", [], [], 404),
    ],
)
def test_bodies_have_limits_and_some_routes_are_closed(safe_server, path, bodies, headers, status):
    guard = safe_server.RequestGuard(everything, max_upload_bytes=2_000_000)
    got, text = answer_of(guard, path, bodies, headers)
    assert got == status
    assert text == str(sum(map(len, bodies))) if status == 200 else "at most" in text or "keeps nothing" in text


def test_visitors_that_are_idle_are_forgotten_with_all_that_they_were_shown(safe_server, viewer, tmp_path, monkeypatch):
    """By the real server: the picture, what was shown, and answers that were never fetched; another visitor's stay."""
    import gradio_client
    from demo_page import DemoPage

    from hub_cards.demo import SPACE

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    bird = str(SPACE / "examples" / "bird_03.png")
    page = DemoPage(viewer, [bird])
    page.blocks.queue(api_open=False)
    _, url, _ = page.blocks.launch(prevent_thread_lock=True, ssr_mode=False, quiet=True)
    try:
        clients = [gradio_client.Client(url, verbose=False, download_files=str(tmp_path / "got")) for _ in range(2)]
        for client in clients:
            client.predict(picture=gradio_client.handle_file(bird), api_name="/segment")
        holder, queue = page.blocks.state_holder, page.blocks._queue
        first, second = (client.session_hash for client in clients)
        assert {first, second} <= holder.session_data.keys()
        holder.time_last_used[first] = datetime.now() - timedelta(seconds=700)
        queue.pending_messages_per_session[first] = ["an answer that nobody fetched"]
        (tmp_path / "empty").mkdir()
        os.utime(tmp_path / "empty", (time.time() - 700,) * 2)
        assert safe_server.forget_visitors(page.blocks, tmp_path, 600) == 1
        assert first not in holder.session_data and first not in holder.time_last_used
        assert first not in queue.pending_messages_per_session and second in holder.session_data
        assert not (tmp_path / "empty").exists()
        assert httpx.get(url).status_code == 200
        answer = clients[0].predict(picture=gradio_client.handle_file(bird), api_name="/segment")  # who comes again is served
        assert len(answer["annotations"]) > 3
        safe_server.keep_forgetting(page.blocks, tmp_path, 0.0, 0.1)
        for _ in range(100):
            if not holder.session_data:
                break
            time.sleep(0.1)
        assert not holder.session_data
    finally:
        page.blocks.close()
