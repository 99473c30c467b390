"""The verb that puts a trained network behind HTTP."""

import dataclasses
import socket
from pathlib import Path
from typing import Annotated, Any

import tyro

from segjax.commands.trained import Which, load
from segjax.errors import SegjaxError
from segjax.serving.uploads import Limits

_LIMITS = Limits()


@tyro.conf.configure(tyro.conf.PositionalRequiredArgs)
def serve(
    run: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    checkpoint: Which = "best",
    limits: Annotated[Limits, tyro.conf.arg(name="")] = _LIMITS,
) -> None:
    """Answer pictures that are posted with their labels, and show a page to drop pictures on.

    It has neither passwords nor encryption: beyond this machine, put a server before it that has.

    Args:
        run: The run folder, or the weights.safetensors of an export.
        host: Address to listen on; by default only this machine reaches it, 0.0.0.0 is all.
        port: To listen on; 0 takes a free one.
        checkpoint: Which checkpoint.
        limits: Of requests.

    Raises:
        SegjaxError: there is no such run, the port is taken, or the extra `serve` is missing.
    """
    server = make_server(run, checkpoint=checkpoint, limits=limits)
    try:
        listening = socket.create_server((host, port), backlog=256)
    except OSError as error:
        raise SegjaxError(
            f"{host}:{port}: cannot be listened on: {error.strerror or error}. Name another --port."
        ) from error
    with listening:
        print(f"Serving {run} on http://{host}:{listening.getsockname()[1]}; Ctrl-C ends it.")
        server.run(sockets=[listening])


def make_server(run: Path, *, checkpoint: Which = "best", limits: Limits) -> Any:
    """The server, not started yet: `run(sockets=[…])` serves until `should_exit` is set.

    Raises:
        SegjaxError: there is no such run, or the extra `serve` is missing.
    """
    try:
        import uvicorn

        from segjax.serving.app import make_app
        from segjax.serving.protocol import ImpatientProtocol
    except ModuleNotFoundError as error:
        raise SegjaxError(
            f"Serving needs {error.name}; install it with pip install 'segjax[serve]'."
        ) from error
    trained = load(run, checkpoint)
    app = make_app(
        lambda: dataclasses.replace(trained).predict,  # with no program compiled
        name=run.resolve().name,
        classes=trained.classes,
        palette=trained.palette,
        channels=trained.channels,
        ranges=trained.ranges,
        limits=limits,
    )
    config = uvicorn.Config(
        app,
        http=ImpatientProtocol,
        ws="none",
        lifespan="on",
        log_level="warning",
        limit_concurrency=4 * limits.waiting,  # connections, however idle
        timeout_graceful_shutdown=10,
        server_header=False,
    )
    return uvicorn.Server(config)
