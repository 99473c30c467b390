"""How fast do pictures come in, what does augmentation cost, and does a step wait for them?

    python benchmarks/input_rate.py
    python benchmarks/input_rate.py --voc VOCdevkit/VOC2012    # its pictures, not drawn ones

Prints Markdown tables. Reading is on one core, with one thread: JPEG pictures and palette PNG masks
of 500×375 pixels from a folder, from ArrayRecord by tfds, and decoded already; then by as many
threads and by as many processes as there are cores. Augmentation is on one core, compiled, of
pictures of 512×512 to crops of 256×256: of several one after the other, or at once.
Training is on all cores.
"""

import argparse
import multiprocessing
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from drawn import draw

CROP = (256, 256)


def array_record(folder: Path, data_dir: Path) -> Any:
    """The same pictures, their files byte for byte, as a tfds data set, and the source of it."""
    import tensorflow_datasets as tfds

    from segjax.data import layouts
    from segjax.data.tfds_source import TFDS

    source = layouts.voc(folder)

    class Pictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[str, dict[str, bytes]]]:
            for pair in source.pairs:
                yield pair.id, {"image": pair.image.read_bytes(), "mask": pair.mask.read_bytes()}

    tfds.disable_progress_bar()
    Pictures(data_dir=data_dir).download_and_prepare(file_format="array_record")
    return TFDS("pictures", "train", data_dir, source.classes, source.palette)


def rate(read: Callable[[int], Any], count: int, seconds: float) -> float:
    """Readings a second, after a first round."""
    for i in range(count):
        read(i)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        read(done % count)
        done += 1
    return done / (time.perf_counter() - start)


def measure_reading(folder: Path, scratch: Path, options: argparse.Namespace) -> None:
    from segjax.data import cache, layouts, pictures, pipeline

    source = layouts.voc(folder)
    print("| reading | pictures a second and core |\n|---|---:|")
    if (turbo := pictures.simplejpeg) is not None:
        pictures.simplejpeg = None
        by_pillow = rate(source.__getitem__, len(source), options.seconds)
        print(f"| folder, without simplejpeg | {by_pillow:,.0f} |", flush=True)
        pictures.simplejpeg = turbo
    os.environ["XDG_CACHE_HOME"] = str(scratch)
    sources = {
        "folder": source,
        "ArrayRecord (tfds)": array_record(folder, scratch),
        'decoded, cache="memory"': cache.in_memory(source),
        'decoded, cache="disk"': cache.on_disk(source, lambda things, what: things),
    }
    for name, source in sources.items():
        print(
            f"| {name} | {rate(source.__getitem__, len(source), options.seconds):,.0f} |",
            flush=True,
        )
    for name, source in sources.items():
        how = {"batch_size": 8, "canvas": (512, 512), "seed": 0, "threads": 1}
        batches = pipeline.train_batches(source, **how)
        batch = rate(lambda i, batches=batches: next(batches), 2, options.seconds)
        print(f"| {name}, batches of 8 on a canvas of 512×512 | {8 * batch:,.0f} |", flush=True)


def measure_together(folder: Path, scratch: Path, options: argparse.Namespace) -> None:
    from segjax.data import layouts

    cores = len(os.sched_getaffinity(0))
    print("\n| folder, read by | pictures a second |\n|---|---:|")
    read = partial(rate, layouts.voc(folder).__getitem__, 64, options.seconds)
    for kind, pool in (
        ("thread", ThreadPoolExecutor(cores)),
        ("process", ProcessPoolExecutor(cores, multiprocessing.get_context("spawn"))),
    ):
        with pool:
            for count in sorted({1, cores}):
                rates = [pool.submit(read) for _ in range(count)]
                told = f"1 {kind}" if count == 1 else f"{count} {kind}{'e' * (kind[-1] == 's')}s"
                print(f"| {told} | {sum(one.result() for one in rates):,.0f} |", flush=True)


def measure_augmentation(folder: Path, scratch: Path, options: argparse.Namespace) -> None:
    import jax

    from segjax.data import augment, colour, layouts, pipeline

    batch = pipeline.pad_to_canvas([layouts.voc(folder)[0]], (512, 512))
    example = augment.Example(*(jax.device_put(batch[name][0]) for name in ("image", "label")))
    crop = partial(augment.random_scale_crop, size=CROP)
    cropped = jax.jit(crop)(jax.random.key(0), example)
    moves = (partial(augment.scale_crop, size=CROP), augment.elastic, augment.rot90, augment.flip)
    chain = (crop, augment.random_elastic, augment.random_rot90, augment.random_flip)
    print("\n| augmentation | ms a picture and core |\n|---|---:|")
    for name, augmentation, start in (
        ("scale and crop", crop, example),
        ("scale and crop, one class at most 75 %", partial(crop, max_share=0.75), example),
        ("flip", augment.random_flip, cropped),
        ("rotation", augment.random_rotation, cropped),
        ("elastic, U-Net's", augment.random_elastic, cropped),
        ("elastic, Simard's", augment.random_elastic_field, cropped),
        ("grey values", colour.random_grey_values, cropped),
        ("brightness, contrast, saturation, hue", colour.random_photometric, cropped),
        ("scale and crop, flip", augment.compose(crop, augment.random_flip), example),
        ("… at once", augment.at_once(moves[0], augment.flip), example),
        ("scale and crop, elastic, quarter turn, flip", augment.compose(*chain), example),
        ("… at once", augment.at_once(*moves), example),
        (
            "scale and crop, flip; brightness, contrast, …",
            augment.compose(augment.at_once(moves[0], augment.flip), colour.random_photometric),
            example,
        ),
    ):
        compiled, keys = jax.jit(augmentation), jax.random.split(jax.random.key(1), 16)
        keys = list(keys)
        per_second = rate(
            lambda i, f=compiled, s=start, k=keys: jax.block_until_ready(f(k[i % 16], s)),
            16,
            options.seconds,
        )
        print(f"| {name} | {1000 / per_second:.2f} |", flush=True)


def measure_training(folder: Path, scratch: Path, options: argparse.Namespace) -> None:
    import jax

    from segjax.data import augment, layouts, pipeline
    from segjax.models import UNet
    from segjax.training import losses, optimizers, sharding
    from segjax.training.train import fit, make_state, make_train_step

    source, mesh = layouts.voc(folder), sharding.make_mesh()
    crop = partial(augment.random_scale_crop, size=CROP)
    augmentation = augment.compose(crop, augment.random_flip)
    scale, key, size = augment.Normalise(), jax.random.key(0), 4

    def prepare(key: jax.Array, batch: Any) -> tuple[jax.Array, jax.Array]:
        keys = jax.vmap(partial(augment.record_key, key))(batch["epoch"], batch["record"])
        example = augment.Example(batch["image"], batch["label"])
        example = jax.vmap(augmentation)(keys, example)
        return scale(example.image), example.label

    model, optimizer = UNet(21, widths=(16, 32, 64, 128)), optimizers.adamw()
    step = make_train_step(
        model,
        optimizer,
        lambda output, labels: losses.cross_entropy(output.logits, labels),
        schedule=optimizers.constant(1e-3),
        prepare=prepare,
        key=key,
    )
    how = {"batch_size": size, "canvas": (512, 512), "seed": 0}
    print("\n| training, U-Net 16–128 at 256×256 | ms a step | waiting for data |\n|---|---:|---:|")
    for name, batches in (
        ("pictures from the folder", lambda: pipeline.train_batches(source, **how)),
        (
            "one batch again and again",
            lambda: repeat(next(pipeline.train_batches(source, **how))),
        ),
    ):
        state = make_state(model, optimizer, key=key, image_shape=(1, *CROP, 3))
        times, waits = [time.perf_counter()], []

        def observe(number: int, scalars: Any, wait: float, times=times, waits=waits) -> None:
            times.append(time.perf_counter())
            waits.append(wait)

        fit(
            state,
            step,
            sharding.prefetch(batches(), mesh),
            until=options.steps + 5,
            observe=observe,
        )
        spent, waited = np.diff(times)[5:], waits[5:]
        share = sum(waited) / sum(spent)
        print(f"| {name} | {1000 * statistics.median(spent):.0f} | {share:.1%} |", flush=True)


def alone(measure: Callable[..., None], cores: set[int], *arguments: Any) -> None:
    """In a process of its own, on these cores; JAX counts them when it starts."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(os.sched_setaffinity, 0, cores).result()
        pool.submit(measure, *arguments).result()


MEASURES = {  # and on how many cores, 0 for all
    "reading": (measure_reading, 1),
    "together": (measure_together, 0),
    "augmentation": (measure_augmentation, 1),
    "training": (measure_training, 0),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--voc", type=Path, help="folder with VOC's JPEGImages and so on")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each rate")
    parser.add_argument("--steps", type=int, default=60, help="of training")
    parser.add_argument(
        "--only", nargs="+", choices=MEASURES, default=[*MEASURES], help="by default all"
    )
    options = parser.parse_args()
    cores = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.voc or Path(scratch) / "voc"
        if options.voc is None:
            draw(folder, 512)
        files = [*folder.glob("JPEGImages/*.jpg")]
        kilobytes = statistics.mean(path.stat().st_size for path in files) / 1000
        print(f"`{shlex.join(['python', *sys.argv])}`: {len(cores)} cores; {len(files)} pictures,")
        print(f"JPEG files of {kilobytes:.0f} kB on average.\n", flush=True)
        one = {min(cores)}
        for name in options.only:
            measure, on = MEASURES[name]
            alone(measure, one if on == 1 else cores, folder, Path(scratch), options)


if __name__ == "__main__":
    main()
