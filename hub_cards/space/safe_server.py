"""What keeps the server small and silent: requests that it refuses, and visitors that it forgets."""

import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.responses import PlainTextResponse

MAX_BODY_BYTES = 1_000_000  # of a request that is no upload
MAX_ENVELOPE_BYTES = 10_000  # around the file of an upload
# Of gradio: the first writes a visitor's session to a file that stays, and shows it to whoever has its name.
REFUSED_ROUTES = ("/deep_link", "/process_recording")
UPLOAD = "/upload"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class _BodyTooLarge(Exception):
    """More has come than may."""


class RequestGuard:
    """Middleware that refuses routes which keep what visitors send, and bodies that gradio would hold in memory unchecked.

    Args:
        app: What answers all other requests.
        max_upload_bytes: Of a file; a request may hold one.
    """

    def __init__(self, app: Callable, max_upload_bytes: int):
        self.app, self.max_upload_bytes = app, max_upload_bytes

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].rstrip("/")
        if path.endswith(REFUSED_ROUTES):
            await PlainTextResponse("This demo keeps nothing.", 404)(scope, receive, send)
            return
        limit = self.max_upload_bytes + MAX_ENVELOPE_BYTES if path.endswith(UPLOAD) else MAX_BODY_BYTES
        refusal = PlainTextResponse(f"The request is too large; at most {limit} bytes are taken. Send less.", 413)
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if not told.isdigit() or int(told) > limit:
            await refusal(scope, receive, send)
            return
        came, has_answered = 0, False

        async def counted() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > limit:
                raise _BodyTooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal has_answered
            has_answered = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except _BodyTooLarge:
            if not has_answered:
                await refusal(scope, receive, send)


def forget_visitors(blocks: gr.Blocks, files: Path, idle_s: float) -> int:
    """Drop all that is remembered of visitors who have not been heard of for a while, and the folders that their files left.

    Gradio lets a picture go after its time, but keeps it for an hour when the page is closed, and what was shown for ever.

    Args:
        blocks: The page, launched.
        files: Gradio's folder of files.
        idle_s: How long nothing must have been heard, in seconds.

    Returns:
        How many visitors were forgotten.
    """
    holder, queue = blocks.state_holder, blocks._queue
    before = datetime.now() - timedelta(seconds=idle_s)
    with holder.lock:
        idle = [session for session, last in list(holder.time_last_used.items()) if last < before]
        for session in idle:
            holder.session_data.pop(session, None)
            holder.time_last_used.pop(session, None)
            if not queue.pending_event_ids_session.get(session):  # nothing of theirs is being computed
                queue.pending_messages_per_session.pop(session, None)
    for folder in files.glob("*"):
        if folder.is_dir() and folder.stat().st_mtime < before.timestamp() and not any(folder.iterdir()):
            folder.rmdir()
    return len(idle)


def keep_forgetting(blocks: gr.Blocks, files: Path, idle_s: float, every_s: float) -> None:
    """Do so again and again, beside the server, until it ends."""

    def work() -> None:
        while True:
            time.sleep(every_s)
            forget_visitors(blocks, files, idle_s)

    threading.Thread(target=work, daemon=True).start()
