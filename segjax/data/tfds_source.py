"""A prepared tfds data set with masks, as a sequence of examples: read without TensorFlow."""

import operator
import warnings
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

from segjax.data.pictures import (
    Unusable,
    check_channels,
    check_palette,
    label_table,
    mask_size,
    picture_size,
    read_mask,
    read_picture,
)
from segjax.errors import SegjaxError


class Encoded(BytesIO):
    """An encoded file in memory, told in messages by its name."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self._told = name

    def __str__(self) -> str:
        return self._told


@dataclass(frozen=True)
class TFDS:
    """A split of a tfds data set that lies prepared in a folder, in ArrayRecord files.

    `TFDS("voc_segmentation/2012_sbd", "trainaug", data_dir, VOC_CLASSES, voc_palette(21))` after
    `python -m segjax prepare voc_segmentation/2012_sbd --data-dir DIR`. tfds's own data sets are
    prepared by tfds, which needs TensorFlow there, but not here:
    `tfds build oxford_iiit_pet --file_format array_record --data_dir DIR`.

    Args:
        dataset: as tfds names it: data set, or data set/config; a version may follow: ":1.0.0".
        split: as tfds has it: "train", "train[:80%]".
        data_dir: the folder in which tfds has prepared it.
        classes: N names, 1 <= N <= 255.
        palette: N colours (red, green, blue), 0..255.
        image: the feature that holds the picture.
        mask: the feature that holds the mask.
        id: the text feature that names an example; None numbers them.
        values: `(stored mask value, class)`, as of `Folder`. The trimap of oxford_iiit_pet, 1 pet,
            2 background, 3 border, needs `((1, 1), (2, 0), (3, 255))`; the label ids of
            cityscapes need `layouts.cityscapes(root).values`.
        channels: of the pictures, of at most 8 bits: 1 grey, 3 RGB, 4 RGBA.

    Raises:
        SegjaxError: at once for arguments that do not fit each other; at first use for data that
            is not prepared, a split or a feature that it has not; at `[i]` as of `read_picture`
            and `read_mask`, or if the two sizes differ.

    Warns:
        UserWarning: the data set is scene_parse150, which is not the benchmark of that name.
    """

    dataset: str
    split: str
    data_dir: Path
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    image: str = "image"
    mask: str = "mask"
    id: str | None = None
    values: tuple[tuple[int, int], ...] = ()
    channels: int = 3

    def __post_init__(self) -> None:
        check_channels(self.channels, ())
        label_table(len(self.classes), self.values)
        check_palette(f"TFDS({self.dataset})", self.classes, self.palette)
        # JSON gives a string and lists back; equality and hash need the types declared above
        for name, value in {
            "data_dir": Path(self.data_dir),
            "classes": tuple(self.classes),
            "palette": tuple(map(tuple, self.palette)),
            "values": tuple(map(tuple, self.values)),
        }.items():
            object.__setattr__(self, name, value)
        if self.dataset.partition("/")[0].partition(":")[0] == "scene_parse150":
            warnings.warn(
                "tfds's scene_parse150 holds the instances of 2017 and calls validation `test`; "
                "scores on it are not those of ADE20K's benchmark of 150 classes. Read that from "
                "its own folders: segjax.data.layouts.",
                stacklevel=3,
            )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Example i, decoded.

        Returns:
            `{"image": uint8 (H, W, C), "label": uint8 (H, W) of 0..N-1 and 255, "id": str}`.

        Raises:
            SegjaxError: a picture is broken, a mask holds other values, or the two sizes differ.
            IndexError: there is no example i.
        """
        name, picture, mask = self._encoded(i)
        image = read_picture(picture, self.channels)
        label = read_mask(mask, len(self.classes), self.values)
        _demand_same_size(picture, image.shape[:2], mask, label.shape)
        return {"image": image, "label": label, "id": name}

    def size_of(self, i: int) -> tuple[int, int]:
        """Height and width of example i, from the headers of the encoded picture and mask alone.

        Raises:
            SegjaxError: what the headers tell to be wrong: one is no picture, the mask is in
                colour, or the two sizes differ.
            IndexError: there is no example i.
        """
        _, picture, mask = self._encoded(i)
        size = picture_size(picture, self.channels)
        _demand_same_size(picture, size, mask, mask_size(mask))
        return size

    @property
    def files(self) -> list[Path]:
        """The ArrayRecord files that hold the split, whole or in part."""
        split = self._records.dataset_info.splits[self.split]
        return sorted({Path(path) for path in split.filepaths})

    def _encoded(self, i: int) -> tuple[str, Encoded, Encoded]:
        """The name, the picture and the mask of example i."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"index {i} is out of range for {len(self)} examples")
        i = operator.index(i) % len(self)
        record = self._records[i]
        name = f"{self.split}-{i}" if self.id is None else str(record[self.id], "utf-8")
        whose = f"{name!r} of {self.dataset}, split {self.split}, in {self.data_dir}"
        picture = Encoded(record[self.image], f"the {self.image} of {whose}")
        return name, picture, Encoded(record[self.mask], f"the {self.mask} of {whose}")

    @cached_property
    def _records(self) -> Any:
        """tfds's sequence of the split's records, {feature: value}, pictures still encoded."""
        import tensorflow_datasets as tfds  # takes half a second

        try:
            builder = tfds.core.read_only_builder.builder_from_files(
                self.dataset, data_dir=self.data_dir
            )
        except tfds.core.DatasetNotFoundError:
            raise SegjaxError(
                f"{self.data_dir}: {self.dataset} is not prepared there; do so by {self._command()}"
            ) from None
        except ValueError as error:
            raise SegjaxError(f"dataset={self.dataset!r} is no name of tfds's: {error}") from error
        features = builder.info.features
        pictures, texts = (
            sorted(name for name in features if isinstance(features[name], kind))
            for kind in (tfds.features.Image, tfds.features.Text)
        )
        for field, known in (("image", pictures), ("mask", pictures), ("id", texts)):
            name = getattr(self, field)
            if name is not None and name not in known:
                raise SegjaxError(
                    f"{self.dataset} has no feature {name!r} for `{field}`; choose from "
                    f"{', '.join(known)}."
                )
        encoded = dict.fromkeys(pictures, tfds.decode.SkipDecoding())
        try:
            return builder.as_data_source(split=self.split, decoders=encoded)
        # So tfds documents it where none of the formats that lie there, which it alone looks up,
        # can be read at any place; the names of its formats are not for us to compare.
        except NotImplementedError:
            raise SegjaxError(
                f"{builder.data_dir}: prepared as {builder.info.file_format.value}, which is not "
                f"read in any order. Delete it and prepare it by {self._command()}"
            ) from None
        except ValueError as error:
            raise SegjaxError(
                f"split={self.split!r} of {self.dataset}: {error} It has "
                f"{', '.join(builder.info.splits)}."
            ) from error

    def _command(self) -> str:
        if self.dataset.startswith("voc_segmentation"):
            return f"python -m segjax prepare {self.dataset} --data-dir {self.data_dir}"
        return f"tfds build {self.dataset} --file_format array_record --data_dir {self.data_dir}"


def _demand_same_size(
    picture: Encoded, image: tuple[int, ...], mask: Encoded, label: tuple[int, ...]
) -> None:
    if image != label:
        raise Unusable(
            "sizes differ",
            f"{picture} is of {image} pixels (height, width), but {mask} of {label}. The two must "
            "match pixel for pixel: prepare the data set anew.",
        )
