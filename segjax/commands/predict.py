"""The verb that labels pictures by a run."""

from functools import partial
from pathlib import Path

import jax
import tyro

from segjax.commands.run import Run
from segjax.commands.trained import Which, load
from segjax.data.pictures import read_picture
from segjax.data.wrapper import bare
from segjax.errors import SegjaxError
from segjax.evaluation import visualise
from segjax.inference.predict import predict_label, tiles


@tyro.conf.configure(tyro.conf.PositionalRequiredArgs)
def predict(
    run: Path,
    images: tyro.conf.Positional[tuple[Path, ...]],
    *,
    out: Path | None = None,
    checkpoint: Which = "best",
    tile: int | None = None,
    gaussian: bool = False,
) -> None:
    """Write label PNGs and overlays of pictures of any size.

    Args:
        run: The run folder.
        images: Picture files.
        out: Where to write; by default `predictions` in the run folder.
        checkpoint: Which checkpoint.
        tile: Compute by tiles of at most so many pixels a side, for pictures that are too large.
        gaussian: Where windows are averaged (SETR), let their weights fall towards the border.

    Raises:
        SegjaxError: pictures that cannot be read, after all others are done.
    """
    stored = Run(run)
    out = out or run / "predictions"
    stems = [path.stem for path in images]
    if twins := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise SegjaxError(
            f"Several pictures would be written to {out / twins[0]}.png; predict them into "
            "different folders with --out."
        )
    if not images:
        raise SegjaxError("No picture was named; give one or more files.")
    tiles_at_a_time = jax.local_device_count()
    _, logits, variables = load(
        stored, checkpoint, tile=tile, gaussian=gaussian, batch_size=tiles_at_a_time
    )
    logits = partial(logits, jax.device_put(variables))
    palette, classes = stored.rebuild("palette"), stored.rebuild("classes")
    ranges = getattr(bare(stored.rebuild("source")), "ranges", ())
    out.mkdir(parents=True, exist_ok=True)
    unread = []
    for path in images:
        try:
            image = read_picture(path, stored.fields["channels"], ranges)
        except SegjaxError as error:
            unread.append(str(error))
            continue
        if tile:
            print(tiles.plan(stored.rebuild("model"), image.shape[:2], tile))
        label = predict_label(logits, image)
        visualise.save_mask(out / f"{path.stem}.png", label, palette)
        overlay = visualise.overlay(image, label, palette)
        visualise.with_legend(overlay, label, classes, palette).save(
            out / f"{path.stem}_overlay.png"
        )
        print(f"{out / path.stem}.png  {path.stem}_overlay.png")
    if unread:
        done = len(images) - len(unread)
        raise SegjaxError("\n".join([*unread, f"The other {done} of {len(images)} are done."]))
