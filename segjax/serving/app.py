"""The web application: a picture is posted, its labels are answered.

    GET  /            a page to drop a picture on
    POST /segment     the picture's bytes; ?as=mask, overlay, geojson or coco
    GET  /health      whether it works, its classes and limits, JSON
    GET  /metrics     counts, as Prometheus reads them

Every refusal is JSON, {"error": why}. Pictures are decoded in threads and predicted in one. The
numbers of requests inside and of decoded pictures are bounded, and so is memory.
"""

import asyncio
import io
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from segjax.data.pictures import Ranges
from segjax.errors import SegjaxError
from segjax.evaluation import visualise
from segjax.serving.batches import Batches, Label
from segjax.serving.outlines import as_coco, as_geojson
from segjax.serving.uploads import Limits, Refused, read_upload

_PAGE = Path(__file__).with_name("page.html")
_PAGE_MAY = "default-src 'self'; img-src blob: data:; style-src 'unsafe-inline'; " + (
    "script-src 'unsafe-inline'; frame-ancestors 'none'"
)
_RETRY = "5"  # seconds
_log = logging.getLogger("uvicorn.error")

Palette = Sequence[tuple[int, int, int]]


def make_app(
    make_label: Callable[[], Label],
    *,
    name: str,
    classes: Sequence[str],
    palette: Palette,
    channels: int,
    ranges: Ranges,
    limits: Limits,
) -> Starlette:
    """The application around a function from batches to labels.

    Args:
        make_label: gives a fresh one, see `Batches`.
        name: of the model, told to its users.
        classes, palette: of its N classes.
        channels, ranges: of its pictures.
        limits: of requests.
    """
    batches: list[Batches] = []  # while it runs, one
    answered: Counter[int] = Counter()
    inside = 0
    spent = 0.0
    decoding, room = asyncio.Semaphore(2), asyncio.Semaphore(2 * limits.batch)

    @asynccontextmanager
    async def running(_: Starlette) -> AsyncIterator[None]:
        batches.append(
            Batches(make_label, size=limits.batch, pixels=limits.pixels, bucket=limits.bucket)
        )
        yield
        await asyncio.to_thread(batches.pop().stop)

    async def segment(request: Request) -> Response:
        nonlocal inside, spent
        if inside >= limits.waiting:
            raise Refused(503, f"{inside} requests are waiting already. Try again in {_RETRY} s.")
        inside += 1
        began = time.perf_counter()
        try:
            form = request.query_params.get("as", "mask")
            if form not in _FORMS:
                raise Refused(400, f"as={form[:40]!r}: expected one of {', '.join(_FORMS)}.")
            data = await _body(request, limits)
            return await _in_time(answer(data, form), limits.seconds)
        finally:
            inside -= 1
            spent += time.perf_counter() - began

    async def answer(data: bytes, form: str) -> Response:
        async with room:
            async with decoding:
                image = await asyncio.to_thread(
                    read_upload, data, channels=channels, ranges=ranges, pixels=limits.pixels
                )
            labels = await batches[0].label(image)
            return await asyncio.to_thread(_FORMS[form], image, labels, classes, palette)

    async def page(_: Request) -> Response:
        text = _PAGE.read_text(encoding="utf-8")
        return Response(
            text, media_type="text/html", headers={"Content-Security-Policy": _PAGE_MAY}
        )

    async def health(_: Request) -> Response:
        well = bool(batches) and batches[0].alive
        told = {
            "status": "ok" if well else "the worker has ended; start the server anew",
            "model": name,
            "classes": [
                {"label": i, "name": label, "colour": list(colour)}
                for i, (label, colour) in enumerate(zip(classes, palette, strict=True))
            ],
            "channels": channels,
            "limits": {"megabytes": limits.megabytes, "megapixels": limits.megapixels},
        }
        return JSONResponse(told, 200 if well else 500)

    async def metrics(_: Request) -> Response:
        worker = batches[0]
        values: dict[str, tuple[str, str, float]] = {
            "segjax_requests_inside": ("gauge", "Requests being served.", inside),
            "segjax_pictures_waiting": ("gauge", "Decoded pictures in the queue.", worker.waiting),
            "segjax_pictures_total": ("counter", "Pictures predicted.", worker.pictures),
            "segjax_batches_total": ("counter", "Batches predicted.", worker.done),
            "segjax_shapes": ("gauge", "Shapes of batches compiled.", len(worker.shapes)),
            "segjax_seconds_total": ("counter", "Time of requests, summed.", round(spent, 6)),
            "process_resident_memory_bytes": (
                "gauge",
                "Memory of the process.",
                psutil.Process().memory_info().rss,
            ),
        }
        lines = [
            line
            for key, (kind, what, value) in values.items()
            for line in (f"# HELP {key} {what}", f"# TYPE {key} {kind}", f"{key} {value}")
        ]
        lines += [
            "# HELP segjax_requests_total Requests by status.",
            "# TYPE segjax_requests_total counter",
            *(
                f'segjax_requests_total{{status="{status}"}} {count}'
                for status, count in sorted(answered.items())
            ),
        ]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    def counted(handle: Callable[[Request], Awaitable[Response]]) -> Callable[..., Any]:
        """Refusals and failures as JSON, every answer counted."""

        async def run(request: Request) -> Response:
            try:
                response = await handle(request)
            except Refused as refused:
                response = _error(refused.status, str(refused))
            except SegjaxError as error:
                response = _error(400, str(error))
            except ClientDisconnect:
                response = _error(400, "The client went away.")
            except Exception:
                _log.exception("a request failed")
                response = _error(500, "The server failed at this picture; its log says how.")
            response.headers["X-Content-Type-Options"] = "nosniff"
            answered[response.status_code] += 1
            return response

        return run

    async def unknown(_: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        told = {
            404: "Nothing here. POST a picture to /segment, or open /.",
            405: "POST pictures to /segment; the other places are read by GET.",
        }
        answered[status] += 1
        return _error(status, told.get(status, "It cannot be served."))

    return Starlette(
        routes=[
            Route("/", counted(page)),
            Route("/segment", counted(segment), methods=["POST"]),
            Route("/health", counted(health)),
            Route("/metrics", counted(metrics)),
        ],
        exception_handlers={HTTPException: unknown},
        lifespan=running,
    )


async def _body(request: Request, limits: Limits) -> bytes:
    """The bytes of a request, or a refusal as soon as there is a reason for one."""
    kind = request.headers.get("content-type", "")
    if kind.startswith("multipart/"):
        raise Refused(
            415,
            "Send the picture's bytes alone as the body, as `curl --data-binary @picture.png` "
            "does, not a form.",
        )
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refused(415, "Send the picture's bytes without a content encoding.")
    too_large = Refused(413, f"More than {limits.bytes:,} bytes; that is the most.")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limits.bytes:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(limits.upload_seconds):
            async for chunk in request.stream():
                data += chunk
                if len(data) > limits.bytes:
                    raise too_large
    except TimeoutError:
        raise Refused(
            408, f"The upload took longer than {limits.upload_seconds:g} s; that is the most."
        ) from None
    return bytes(data)


async def _in_time(answer: Awaitable[Response], seconds: float) -> Response:
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except TimeoutError:
        raise Refused(504, f"It took longer than {seconds:g} s, and was given up.") from None


def _error(status: int, why: str) -> Response:
    headers = {"Retry-After": _RETRY} if status == 503 else {}
    if status in (408, 413, 415, 503):  # what may follow of the upload is not read
        headers["Connection"] = "close"
    return JSONResponse({"error": why}, status, headers=headers)


def _mask(image: np.ndarray, labels: np.ndarray, classes: Any, palette: Palette) -> Response:
    buffer = io.BytesIO()
    visualise.save_mask(buffer, labels, palette)
    return Response(buffer.getvalue(), media_type="image/png")


def _overlay(image: np.ndarray, labels: np.ndarray, classes: Any, palette: Palette) -> Response:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(visualise.overlay(image, labels, palette)).save(buffer, "PNG")
    return Response(buffer.getvalue(), media_type="image/png")


def _geojson(image: Any, labels: np.ndarray, classes: Any, palette: Palette) -> Response:
    told = json.dumps(as_geojson(labels, classes, palette), ensure_ascii=False)
    return Response(told, media_type="application/geo+json")


def _coco(image: Any, labels: np.ndarray, classes: Any, palette: Palette) -> Response:
    return Response(
        json.dumps(as_coco(labels, classes), ensure_ascii=False), media_type="application/json"
    )


_FORMS: dict[str, Callable[..., Response]] = {
    "mask": _mask,
    "overlay": _overlay,
    "geojson": _geojson,
    "coco": _coco,
}
