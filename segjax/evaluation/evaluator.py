"""The one pass over a data set from which all its scores come, during a training and after it.

On the device, from the logits: pixels of each pair of classes, of each bin of confidence, and a
loss, picture by picture. On the host, where it is asked for, what needs a whole label map: contours
and objects. What is kept of a picture adds up, so the scores of the data set and those of the
pictures that a bootstrap draws are one function, of other sums; and they are the same for any size
and order of batches, and any number of devices.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from segjax.errors import SegjaxError
from segjax.evaluation import bootstrap, boundary, calibration, metrics, objects
from segjax.inference.predict import labels_of, probabilities_of

_STRIP = 2**22  # pixels at a time of logits that lie on the host, as tiles leave them

# The number of a picture in its source, the label (H, W) predicted and, if asked for, the
# probabilities (H, W, N) -> counts by name.
Inspect = Callable[..., Mapping[str, np.ndarray]]


class Measure(Protocol):
    """Scores of a challenge beside the usual ones, such as `segjax.evaluation.isbi.ISBI2012`."""

    def count(self, truth: np.ndarray, probabilities: np.ndarray) -> Mapping[str, np.ndarray]:
        """What adds up over pictures, by name; of truth (H, W) and probabilities (H, W, N)."""
        ...

    def scores(self, sums: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The scores (…) by name, of the sums (…, …) of what was counted."""
        ...


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was counted of the P pictures of a data set, and the scores that follow from it.

    Args:
        records: (P,) numbers of the pictures in their source, rising.
        confusion: (N, N) int64, all pictures together.
        rows: by name, an array (P, …) of what was counted of each picture: "counts" (3, N) as of
            `metrics.class_counts`; "calibration" (3, K); "loss", where it was asked for; "boundary"
            (3, N), "trimap" (W, 3, N) and "objects" (T + 2), where they were; and what the measure
            counts.
        measure: whose scores follow too.
    """

    records: np.ndarray
    confusion: np.ndarray
    rows: Mapping[str, np.ndarray]
    measure: Measure | None = None

    def scores(self) -> dict[str, float]:
        """The scores of the data set by name, mIoU first; NaN where nothing is in the divisor."""
        sums = {name: values.sum(0) for name, values in self._sums().items()}
        return {name: float(score) for name, score in self._scores(sums).items()}

    def intervals(self, **options: Any) -> dict[str, tuple[float, float]]:
        """95 % intervals of the same scores, as of `bootstrap.intervals`, which has the options."""
        return bootstrap.intervals(self._sums(), self._scores, **options)

    def per_class(self) -> dict[str, np.ndarray]:
        """The scores of each class by name, (N,) each."""
        found = metrics.per_class(self.confusion)
        if "boundary" in self.rows:
            found["boundary_iou"] = metrics.iou_of(self.rows["boundary"].sum(0))
        return found

    def pictures(self) -> list[dict[str, float]]:
        """The scores of each picture by name, in the order of `records`.

        They are over the classes that the picture's truth has: where a class is predicted but
        absent, a stray pixel of it would cost as much as a whole class.
        """
        counts = self.rows["counts"]
        found = metrics.picture_scores(counts)
        if "boundary" in self.rows:
            of_boundary = metrics.iou_of(self.rows["boundary"])
            found["mean_boundary_iou"] = _mean_of_present(of_boundary, counts)
        if "objects" in self.rows:
            found["object_f1"] = objects.f1_of(self.rows["objects"])[:, 0]
        names = found.keys()
        return [
            dict(zip(names, map(float, row), strict=True))
            for row in zip(*found.values(), strict=True)
        ]

    def reliability(self) -> dict[str, Any]:
        """Calibration by K bins of confidence, for the plot.

        "edges" (K + 1); "count", "confidence", "accuracy" (K); and "ece" and "mce".
        """
        counts = self.rows["calibration"].sum(0)
        confidence, accuracy = calibration.reliability(counts)
        return {
            "edges": np.linspace(0, 1, counts.shape[-1] + 1),
            "count": counts[0].astype(np.int64),
            "confidence": confidence,
            "accuracy": accuracy,
            "ece": float(calibration.ece(counts)),
            "mce": float(calibration.mce(counts)),
        }

    def objects(self) -> dict[str, Any] | None:
        """What was found of the objects at each "threshold" of IoU, where they are numbered."""
        if "objects" not in self.rows:
            return None
        counts = self.rows["objects"].sum(0)
        return {
            "threshold": [percent / 100 for percent in objects.THRESHOLDS],
            "found": counts[:-2],
            "f1": objects.f1_of(counts),
            "true": int(counts[-2]),
            "predicted": int(counts[-1]),
        }

    @property
    def loss(self) -> float:
        """The loss over the valid pixels of the data set; NaN where none is valid."""
        pixels = self.confusion.sum()
        return float(self.rows["loss"].sum(dtype=np.float64) / pixels) if pixels else float("nan")

    def _sums(self) -> dict[str, np.ndarray]:
        """Of each picture what adds up to what `_scores` takes."""
        rows = {name: values for name, values in self.rows.items() if name != "loss"}
        rows["dice"] = _with_number(metrics.picture_scores(rows["counts"])["dice"])
        if "objects" in rows:
            rows["dsb"] = _with_number(objects.dsb_of(rows["objects"]))
        return rows

    def _scores(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All scores of a data set, given the sums (…) of what was counted of its pictures."""
        return _scores(sums) | dict(self.measure.scores(sums) if self.measure else {})


def evaluate(
    predict: Callable[[Any], Any],
    batches: Iterable[Mapping[str, Any]],
    *,
    num_classes: int,
    ignore_label: int = 255,
    summed_loss: Callable[[Any, Any], Any] | None = None,
    inspect: Inspect | None = None,
    threads: int = 2,
    probabilities: bool = False,
) -> Evaluation:
    """Count all of a data set, or of this process's share of it, in one pass.

    Args:
        predict: uint8 images (B, H, W, C) -> logits (B, H, W, N), or (B, H, W, 1) of a sigmoid for
            two classes.
        batches: of "image", "label" (B, H, W) and "record" (B,), as of `evaluation_batches`: the
            number of each picture in its source, below 0 where it only fills the batch up. Of
            batches that are split over several processes each counts the rows that it holds:
            `joined` puts them together.
        num_classes: N.
        ignore_label: the label of pixels that do not count.
        summed_loss: (logits (1, H, W, N), labels (1, H, W)) -> its sum over a picture's valid
            pixels. The same function each time, or each time is compiled.
        inspect: given the number of a picture and its label as predicted, uint8 (H, W) of the
            batch's size, counts more of it; `contours_and_objects` does.
        threads: in which that is done, while the device computes the next batch.
        probabilities: whether it is given them too, float32 (H, W, N).

    Raises:
        SegjaxError: the network has another number of classes, or a label is outside of them.
    """
    confusion = np.zeros((num_classes, num_classes), np.int64)
    records, rows = [np.zeros(0, int)], [{"counts": np.zeros((0, 3, num_classes), np.int32)}]
    count = partial(_count, num_classes=num_classes, ignore_label=ignore_label, loss=summed_loss)

    def counted_batches() -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
        for batch in batches:
            logits = predict(batch["image"])
            metrics.check_classes(logits.shape[-1], num_classes)
            counted = _by_strips(count, logits, batch["label"])
            yield batch, counted | ({"shares": probabilities_of(logits)} if probabilities else {})

    def on_host(pool: Executor) -> Iterator[tuple[np.ndarray, dict[str, Any], list[Future[Any]]]]:
        for batch, counted in metrics.one_late(counted_batches()):
            metrics.check_inside(int(counted.pop("outside")), num_classes, labels=batch["label"])
            record = _own(batch["record"])
            seen = [_own(counted.pop(name)) for name in ("predicted", "shares") if name in counted]
            here = {name: _own(values)[record >= 0] for name, values in counted.items()}
            more = []
            if inspect:
                each = zip(record, *seen, strict=True)
                more = [pool.submit(inspect, int(i), *of) for i, *of in each if i >= 0]
            yield record[record >= 0], here, more

    with ThreadPoolExecutor(threads) as pool:
        for record, here, inspected in metrics.one_late(on_host(pool)):
            pairs = here.pop("pairs").reshape(-1, num_classes, num_classes)
            confusion += pairs.sum(0, dtype=np.int64)
            here["counts"] = metrics.class_counts(pairs).astype(np.int32)
            here["calibration"] = calibration.counts_of(here["calibration"])
            more = [one.result() for one in inspected]
            here |= {name: np.stack([one[name] for one in more]) for name in (more or [{}])[0]}
            records.append(record)
            rows.append(here)
    return _sorted(np.concatenate(records), confusion, rows)


def joined(parts: Sequence[Evaluation]) -> Evaluation:
    """One evaluation of several, as of the shares of several processes."""
    records = np.concatenate([part.records for part in parts])
    confusion = np.sum([part.confusion for part in parts], axis=0)
    return _sorted(records, confusion, [part.rows for part in parts])


def of_labels(
    labelled: Iterable[tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]]],
    *,
    num_classes: int,
    ignore_label: int = 255,
) -> Evaluation:
    """The evaluation of labels from elsewhere, that no logits of ours are behind; all on the host.

    Args:
        labelled: of each picture truth and prediction, integers (H, W), and what else was counted
            of it (`contours_and_objects`).
        num_classes, ignore_label: as of `evaluate`.

    Raises:
        SegjaxError: shapes differ, or a label is outside the classes.
    """
    confusion, rows = np.zeros((num_classes, num_classes), np.int64), []
    for truth, predicted, more in labelled:
        if truth.shape != predicted.shape:
            raise SegjaxError(
                f"The truth is {truth.shape}, the prediction {predicted.shape}; expected (H, W) of "
                "both."
            )
        valid = truth != ignore_label
        true, given = truth[valid].astype(np.int64), predicted[valid].astype(np.int64)
        outside = (np.minimum(true, given) < 0) | (np.maximum(true, given) >= num_classes)
        metrics.check_inside(outside.sum(), num_classes, labels=truth, predictions=predicted)
        pairs = np.bincount(true * num_classes + given, minlength=num_classes**2)
        pairs = pairs.reshape(num_classes, num_classes)
        confusion += pairs
        rows.append({"counts": metrics.class_counts(pairs)[None]})
        rows[-1] |= {name: values[None] for name, values in more.items()}
    return _sorted(np.arange(len(rows)), confusion, rows)


def contours_and_objects(
    truth: np.ndarray,
    predicted: np.ndarray,
    *,
    num_classes: int,
    ignore_label: int = 255,
    numbered: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """What needs a picture's whole label map, for `inspect`: boundaries, trimaps, and objects.

    Args:
        truth: integers (H, W) in 0…N-1, or `ignore_label`.
        predicted: integers (H, W) in 0…N-1.
        num_classes: N.
        ignore_label: the label of pixels that do not count.
        numbered: the objects of truth and prediction, integers (H, W), 0 or the number of one;
            where there are none, no objects are counted.

    Returns:
        "boundary", "trimap" and "objects", as of `Evaluation.rows`.
    """
    of_boundary, of_trimaps = boundary.contour_counts(
        truth, predicted, num_classes=num_classes, ignore_label=ignore_label
    )
    found: dict[str, np.ndarray] = {
        "boundary": of_boundary.astype(np.int32),
        "trimap": of_trimaps.astype(np.int32),
    }
    if numbered is not None:
        found["objects"] = objects.count_objects(*numbered)
    return found


def _scores(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The usual scores, given the sums (…) of what was counted of the pictures."""
    found = metrics.summary_of(sums["counts"])
    found["dice_per_picture"] = _per_picture(sums["dice"])
    if "boundary" in sums:
        found["mean_boundary_iou"] = metrics.mean_of(metrics.iou_of(sums["boundary"]))
        of_trimaps = metrics.mean_of(metrics.iou_of(sums["trimap"]))
        for i, width in enumerate(boundary.WIDTHS):
            found[f"trimap_iou_{width}px"] = of_trimaps[..., i]
    if "objects" in sums:
        found |= objects.object_scores(sums["objects"])
        found["object_dsb2018"] = _per_picture(sums["dsb"])
    if "calibration" in sums:
        found |= {
            "calibration_ece": calibration.ece(sums["calibration"]),
            "calibration_mce": calibration.mce(sums["calibration"]),
        }
    return found


@partial(jax.jit, static_argnames=("num_classes", "ignore_label", "loss", "split"))
def _count(
    logits: jax.Array,
    labels: jax.Array,
    *,
    num_classes: int,
    ignore_label: int,
    loss: Callable[[Any, Any], Any] | None,
    split: NamedSharding | None,
) -> dict[str, jax.Array]:
    """What is counted on the device of each picture of a batch, and all pixels of no class."""
    predicted = labels_of(logits)
    pairs = metrics.count_pairs(
        labels, predicted, num_classes=num_classes, ignore_label=ignore_label
    )
    found = {
        "pairs": pairs[:, :-1],
        "calibration": calibration.histogram(logits, labels, ignore_label=ignore_label),
        "predicted": predicted.astype(jnp.uint8),
    }
    if loss:
        found["loss"] = jax.vmap(lambda x, y: loss(x[None], y[None]))(logits, labels)
    if split:  # each picture's stay where it is
        found = jax.lax.with_sharding_constraint(found, split)
    return found | {"outside": pairs[:, -1].sum()}


def _by_strips(count: Callable[..., Any], logits: Any, labels: Any) -> dict[str, Any]:
    """`_count`, by strips of rows where the logits lie on the host: the device may be too small."""
    if isinstance(logits, jax.Array):
        sharding = getattr(labels, "sharding", None)
        return count(
            logits, labels, split=sharding if isinstance(sharding, NamedSharding) else None
        )
    size, height, width = labels.shape
    rows = max(1, _STRIP // (size * width))
    strips = [np.s_[:, top : top + rows] for top in range(0, height, rows)]
    each = [jax.device_get(count(logits[at], labels[at], split=None)) for at in strips]
    predicted = np.concatenate([one.pop("predicted") for one in each], 1)
    return jax.tree.map(lambda *parts: np.sum(parts, axis=0), *each) | {"predicted": predicted}


def _own(array: Any) -> np.ndarray:
    """The rows of an array that this process holds, on the host."""
    if getattr(array, "is_fully_addressable", True):
        return np.asarray(array)
    rows = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])


def _sorted(
    records: np.ndarray, confusion: np.ndarray, rows: Sequence[Mapping[str, np.ndarray]]
) -> Evaluation:
    """The evaluation of pictures in any order, whose rows come in several parts."""
    order = np.argsort(records, kind="stable")
    names = dict.fromkeys(name for part in rows for name in part)
    together = {
        # A part without any picture knows no names.
        name: np.concatenate([part[name] for part in rows if name in part])[order]
        for name in names
    }
    return Evaluation(records[order], confusion, together)


def _with_number(values: np.ndarray) -> np.ndarray:
    """(P,) -> (P, 2): what adds up to the mean over the pictures where a score is not NaN."""
    return np.stack([np.nan_to_num(values), ~np.isnan(values)], -1)


def _per_picture(sums: np.ndarray) -> np.ndarray:
    """That mean."""
    return metrics.ratio(sums[..., 0], sums[..., 1])


def _mean_of_present(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return metrics.mean_of(np.where(counts[:, 1] > 0, scores, np.nan))
