"""Any tfds data set with masks is read as a source, in any order, or told how to be prepared."""

import dataclasses
import io
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from segjax.commands.description import describe, rebuild
from segjax.data import cache, layouts, tfds_source
from segjax.data.labels import voc_palette
from segjax.data.pipeline import evaluation_batches
from segjax.data.tfds_source import TFDS
from segjax.errors import SegjaxError

# as oxford_iiit_pet's: 1 pet, 2 background, 3 border
TRIMAP = ((1, 1), (2, 0), (3, 255))
PAIRS = [
    (
        np.random.default_rng(i).integers(0, 256, (6 + i, 9, 3), np.uint8),
        np.random.default_rng(i).integers(1, 4, (6 + i, 9), np.uint8),
    )
    for i in range(5)
]


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


class SmallPets(tfds.core.GeneratorBasedBuilder):
    """A data set as tfds has them, of five pictures with trimaps."""

    VERSION = tfds.core.Version("1.2.0")
    pairs = PAIRS

    def _info(self):
        features = {
            "photo": tfds.features.Image(encoding_format="png"),
            "segmentation_mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            "file_name": tfds.features.Text(),
            "species": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, (image, trimap) in enumerate(self.pairs):
            yield (
                i,
                {
                    "photo": png(image),
                    "segmentation_mask": png(trimap),
                    "file_name": f"pet_{i}.jpg",
                    "species": i % 2,
                },
            )


def prepare(folder, pairs=PAIRS, shards=None):
    builder = SmallPets(data_dir=folder)
    builder.pairs = pairs
    options = tfds.download.DownloadConfig(num_shards=shards)
    builder.download_and_prepare(file_format="array_record", download_config=options)
    return folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("tfds"))


def pets(data_dir, **changes):
    fields = {
        "dataset": "small_pets",
        "split": "train",
        "data_dir": data_dir,
        "classes": ("background", "pet"),
        "palette": voc_palette(2),
        "image": "photo",
        "mask": "segmentation_mask",
        "id": "file_name",
        "values": TRIMAP,
    }
    return TFDS(**(fields | changes))


def test_examples(data_dir):
    source = pets(data_dir)
    assert len(source) == 5
    for i in (3, 0, 4, 1, 2, -1, np.int64(2)):
        image, trimap = PAIRS[i]
        example = source[i]
        np.testing.assert_array_equal(example["image"], image)
        np.testing.assert_array_equal(example["label"], np.uint8([9, 1, 0, 255])[trimap])
        assert example["image"].dtype == example["label"].dtype == np.uint8
        assert example["id"] == f"pet_{i % 5}.jpg"
    for i in (5, -6):
        with pytest.raises(IndexError, match="out of range for 5"):
            source[i]
    assert len(list(source)) == 5  # an IndexError ends it


def test_label_ids_of_cityscapes_become_train_ids(tmp_path):
    ids = np.arange(34, dtype=np.uint8).reshape(2, 17)
    prepare(tmp_path, [(np.zeros((2, 17, 3), np.uint8), ids)])
    cityscapes = layouts.cityscapes(tmp_path)
    classes, palette, values = cityscapes.classes, cityscapes.palette, cityscapes.values
    label = pets(tmp_path, classes=classes, palette=palette, values=values)[0]["label"].ravel()
    assert label[7] == 0 and label[26] == 13 and label[33] == 18  # road, car, bicycle
    assert sorted(label) == [*range(19), *[255] * 15]


def test_part_of_a_split_channels_and_ids(data_dir):
    source = pets(data_dir, split="train[60%:]", channels=1, id=None, dataset="small_pets:1.2.0")
    assert len(source) == 2
    assert source[0]["image"].shape == (9, 9, 1)
    assert source[1]["id"] == "train[60%:]-1"


@pytest.mark.parametrize(
    "split, shards",
    [
        ("train", [0, 1]),
        ("all", [0, 1]),
        ("train[:20%]", [0]),
        ("train[4:]", [1]),
        ("train[:1]+train[1:2]", [0]),
    ],
)
def test_files_are_those_that_hold_the_split(tmp_path, split, shards):
    folder = prepare(tmp_path, shards=2) / "small_pets/1.2.0"
    expected = [folder / f"small_pets-train.array_record-0000{i}-of-00002" for i in shards]
    source = pets(tmp_path, split=split)
    assert source.files == expected == [path for path in expected if path.is_file()]


def undecoded(monkeypatch):
    """From now on, whatever decodes a picture or mask fails."""
    monkeypatch.delattr(tfds_source, "read_picture")
    monkeypatch.delattr(tfds_source, "read_mask")


def test_sizes_are_told_by_the_headers(data_dir, monkeypatch):
    source = pets(data_dir, split="train[1:]")
    undecoded(monkeypatch)
    assert [source.size_of(i) for i in (2, 0, -1)] == [(9, 9), (7, 9), (10, 9)]
    with pytest.raises(IndexError, match="out of range for 4"):
        source.size_of(4)


def test_what_headers_tell_to_be_wrong(tmp_path):
    image, trimap = PAIRS[0]
    broken = [(image, trimap[:-1]), (image, image[..., :2])]
    source = pets(prepare(tmp_path, broken))
    with pytest.raises(SegjaxError, match=r"photo of 'pet_0\.jpg' .*\(6, 9\).*mask of.*\(5, 9\)"):
        source.size_of(0)
    with pytest.raises(SegjaxError, match=r"mask of 'pet_1\.jpg' of small_pets.*mode LA"):
        source.size_of(1)


def test_decoded_examples_are_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepare(tmp_path)
    for split, ids in (("train[:2]", [0, 1]), ("train[2:]", [2, 3, 4])):
        source = pets(tmp_path, split=split)
        expected = list(source)
        cache.on_disk(source, lambda things, what: things)
        with monkeypatch.context() as patch:
            undecoded(patch)
            kept = list(cache.on_disk(source, lambda things, what: things))
        assert [example["id"] for example in kept] == [f"pet_{i}.jpg" for i in ids]
        for example, other in zip(kept, expected, strict=True):
            np.testing.assert_array_equal(example["image"], other["image"])
            np.testing.assert_array_equal(example["label"], other["label"])


def test_evaluation_on_several_canvases_decodes_each_picture_once(data_dir, monkeypatch):
    decoded = []
    read = tfds_source.read_mask
    monkeypatch.setattr(tfds_source, "read_mask", lambda *a: decoded.append(a) or read(*a))
    canvases = [(7, 9), (10, 10)]
    batches = list(evaluation_batches(pets(data_dir), batch_size=1, canvases=canvases))
    assert [batch["label"].shape for batch in batches] == [(1, 7, 9)] * 2 + [(1, 10, 10)] * 3
    assert len(decoded) == 5


def test_source_is_data(data_dir):
    """It is pickled, also after use, hashed, and written to a run folder and rebuilt from it."""
    source = pets(data_dir)
    for _ in range(2):
        twin = pickle.loads(pickle.dumps(source))
        assert twin == source and hash(twin) == hash(source)
        np.testing.assert_array_equal(twin[1]["image"], PAIRS[1][0])
        source[0]
    assert rebuild(json.loads(json.dumps(describe(source)))) == source
    fields = json.loads(json.dumps(dataclasses.asdict(source), default=str))
    assert TFDS(**fields) == source


def test_threads(data_dir):
    source = pets(data_dir)
    with ThreadPoolExecutor(8) as pool:
        examples = list(pool.map(source.__getitem__, [0, 1, 2, 3, 4] * 20))
    for example, (image, _) in zip(examples, PAIRS * 20, strict=True):
        np.testing.assert_array_equal(example["image"], image)


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"classes": ()}, "got 0 classes"),
        ({"palette": voc_palette(3)}, r"TFDS\(small_pets\): got 3 colours .* 2 classes"),
        ({"values": ((1, 2),)}, "cannot map 1 to 2"),
        ({"channels": 2}, "channels=2"),
    ],
)
def test_arguments_are_checked_at_once(tmp_path, changes, told):
    with pytest.raises(SegjaxError, match=told):
        pets(tmp_path, **changes)


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"split": "val"}, r"split='val' of small_pets: .*It has train\."),
        ({"dataset": "small-pets"}, "dataset='small-pets' is no name of tfds's: "),
        ({"split": "train[:"}, r"split='train\[:' of small_pets: "),
        (
            {"image": "image"},
            "has no feature 'image' for `image`; choose from photo, segmentation_mask",
        ),
        ({"mask": "species"}, "has no feature 'species' for `mask`; "),
        ({"id": "name"}, r"has no feature 'name' for `id`; choose from file_name\."),
    ],
)
def test_what_the_data_set_has_not(data_dir, changes, told):
    with pytest.raises(SegjaxError, match=told):
        len(pets(data_dir, **changes))


@pytest.mark.parametrize(
    "name, command",
    [
        ("voc_segmentation/2012_sbd", "python -m segjax prepare voc_segmentation/2012_sbd --data-"),
        ("small_pets", "tfds build small_pets --file_format array_record --data_dir "),
        ("small_pets:9.9.9", "tfds build small_pets:9.9.9"),
        ("small_pets/large", "tfds build small_pets/large"),
    ],
)
def test_what_is_not_prepared_is_told_with_the_command(data_dir, tmp_path, name, command):
    for folder in (tmp_path, tmp_path / "absent", *([data_dir] if name != "small_pets" else [])):
        with pytest.raises(SegjaxError, match=f"{name} is not prepared there; do so by {command}"):
            pets(folder, dataset=name)[0]


def test_files_without_random_access(tmp_path):
    folder = prepare(tmp_path) / "small_pets/1.2.0"
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(SegjaxError, match=r"1\.2\.0: prepared as tfrecord.*tfds build small_pets"):
        pets(tmp_path)[0]


def test_broken_records_are_told_by_their_names(tmp_path):
    image, trimap = PAIRS[0]
    prepare(tmp_path, [(image, trimap), (image, trimap[:-1]), (image, trimap + 9)])
    source = pets(tmp_path)
    source[0]
    with pytest.raises(SegjaxError, match=r"photo of 'pet_1\.jpg' .*\(6, 9\).*mask of.*\(5, 9\)"):
        source[1]
    with pytest.raises(SegjaxError, match=r"mask of 'pet_2\.jpg' of small_pets.* mask values 10 "):
        source[2]


def test_warning_that_scene_parse150_is_another_data_set(tmp_path):
    with pytest.warns(UserWarning, match="scene_parse150 holds the instances") as told:
        pets(tmp_path, dataset="scene_parse150")
    assert told[0].filename == __file__  # where the source was asked for
