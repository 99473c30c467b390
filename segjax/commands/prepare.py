"""The verb that brings in a data set: python -m segjax prepare voc_segmentation/2012_sbd …"""

from pathlib import Path
from typing import Literal

import tyro


def prepare(
    dataset: tyro.conf.Positional[Literal["voc_segmentation/2012", "voc_segmentation/2012_sbd"]],
    *,
    data_dir: Path,
    manual: Path | None = None,
) -> None:
    """Download PASCAL VOC 2012's pictures and masks, with SBD's where asked for, and prepare them.

    Args:
        dataset: 2012 is VOC alone: train, val, and test without labels. 2012_sbd has trainaug for
            training and val, and FCN's own sbd_train, with seg11valid where MANUAL has its list.
        data_dir: Where it is put, in the layout of tfds; archives in its folder downloads.
        manual: A folder with archives that were downloaded by hand, and with seg11valid.txt.

    Raises:
        SegjaxError: a file cannot be had or is not the one published, or the disk is full.
    """
    import tensorflow_datasets as tfds  # takes half a second, for which other verbs need not wait

    from segjax.data.voc import build

    tfds.disable_progress_bar()  # the build has its own
    builder = build(dataset.partition("/")[2], data_dir, manual)
    for name, split in builder.info.splits.items():
        print(f"{name}: {split.num_examples:,} pictures")
    print(f"in {builder.data_dir}")
    if dataset.endswith("sbd") and "seg11valid" not in builder.info.splits:
        print("without seg11valid, whose list is looked for in the folder that --manual names")
