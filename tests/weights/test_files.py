"""Weights files of each kind are read by name; what is wrong with one is told with its name."""

import hashlib
import pickle
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from segjax import weights
from segjax.errors import SegjaxError
from segjax.models import FCN, SETRPUP, UNet, UNetPlusPlus
from segjax.weights import files

TENSORS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "conv.bias": np.array([1.5, -2], np.float16),
    "steps": np.array(7),
}


def assert_equal(got, want):
    assert set(got) == set(want)
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value)
        assert got[name].dtype == value.dtype


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def test_npz_and_safetensors(tmp_path):
    np.savez(tmp_path / "a.npz", **TENSORS)
    safetensors.numpy.save_file(TENSORS, tmp_path / "a.safetensors")
    assert_equal(weights.read(tmp_path / "a.npz"), TENSORS)
    assert_equal(weights.read(str(tmp_path / "a.safetensors")), TENSORS)


@pytest.mark.parametrize("part", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_pytorch(torch, tmp_path, part, prefix):
    held = {prefix + name: torch.tensor(value) for name, value in TENSORS.items()}
    torch.save({part: held, "epoch": 3} if part else held, tmp_path / "a.pth")
    assert_equal(weights.read(tmp_path / "a.pth"), TENSORS)


def test_pytorch_lists_and_bfloat16(torch, tmp_path):
    held = {"mask_values": [0, 255], "w": torch.ones(3, dtype=torch.bfloat16)}
    torch.save(held, tmp_path / "a.pt")
    want = {"mask_values": np.array([0, 255]), "w": np.ones(3, np.float32)}
    assert_equal(weights.read(tmp_path / "a.pt"), want)


def test_pytorch_runs_no_code(torch, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"w": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(SegjaxError, match=r"evil\.pth: is broken, or holds more than tensors"):
        weights.read(tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(SegjaxError, match=r"plain\.pth"):
        weights.read(tmp_path / "plain.pth")
    np.savez(tmp_path / "evil.npz", w=np.array([Evil()], dtype=object))
    (tmp_path / "ran").unlink(missing_ok=True)  # pickling an array of objects makes one
    with pytest.raises(SegjaxError, match=r"evil\.npz: cannot be read: Object arrays"):
        weights.read(tmp_path / "evil.npz")
    assert not (tmp_path / "ran").exists()


def test_pytorch_no_state_dict(torch, tmp_path):
    torch.save(torch.zeros(3), tmp_path / "a.pth")
    with pytest.raises(SegjaxError, match="expected a state dict, got a Tensor"):
        weights.read(tmp_path / "a.pth")


@pytest.mark.parametrize("top", ["", "model_weights/"])
def test_keras(tmp_path, top):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file[f"{top}conv11/conv11/kernel:0"] = TENSORS["conv.weight"]
        file[f"{top}conv11/conv11/bias:0"] = TENSORS["conv.bias"]
        file.create_group(f"{top}pool1")
        if top:
            file["optimizer_weights/sgd/momentum:0"] = np.zeros(2)
    want = {"conv11/kernel": TENSORS["conv.weight"], "conv11/bias": TENSORS["conv.bias"]}
    assert_equal(weights.read(tmp_path / "a.h5"), want)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".h5"])
def test_a_broken_file_is_named(suffix, tmp_path):
    if suffix == ".pth":
        pytest.importorskip("torch")
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(SegjaxError, match=rf"broken\{suffix}: (cannot be read|is broken)"):
        weights.read(path)


def test_no_file_and_another_kind(tmp_path):
    with pytest.raises(SegjaxError, match=r"none\.npz: no such file"):
        weights.read(tmp_path / "none.npz")
    with pytest.raises(SegjaxError, match=r"a\.caffemodel: weights are read from \.npz, .*'\.caff"):
        weights.read(tmp_path / "a.caffemodel")


@pytest.mark.parametrize(
    "package, suffix, extra", [("torch", "pth", "torch"), ("h5py", "h5", "h5")]
)
def test_what_is_not_installed_is_named(package, suffix, extra, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / f"a.{suffix}"
    path.touch()
    with pytest.raises(SegjaxError, match=rf"pip install 'segjax\[{extra}\]'"):
        weights.read(path)


def test_a_url_is_fetched_once_it_has_a_checksum(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", **TENSORS)
    sha256 = hashlib.sha256((tmp_path / "a.npz").read_bytes()).hexdigest()
    asked = []

    def fetch(url, folder, *, sha256):
        asked.append((url, folder.parts[-2:], sha256))
        return tmp_path / "a.npz"

    monkeypatch.setattr(files, "fetch", fetch)
    url = "https://example.org/a.npz"
    with pytest.raises(SegjaxError, match=f"{url}: name the file's SHA-256"):
        weights.read(url)
    assert_equal(weights.read(url, sha256=sha256), TENSORS)
    assert asked == [(url, ("segjax", "weights"), sha256)]


def any_bits(model):
    """Variables of a network, of any bits: negative zeros and all kinds of NaN among them."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    return jax.tree.map(
        lambda leaf: rng.integers(2**32, size=leaf.shape, dtype=np.uint32).view(leaf.dtype), shapes
    )


@pytest.mark.parametrize(
    "model",
    [
        FCN(3, widths=(2, 3, 4, 5, 6), classifier_width=7, upsampling="learned"),
        UNet(3, widths=(4, 6)),
        UNetPlusPlus(3, widths=(2, 3, 4)),
        SETRPUP(3, depth=2, width=4, heads=2, channels=2, auxiliary_taps=(0,)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_our_own_files_come_back_bit_for_bit(model, tmp_path):
    variables, path = any_bits(model), tmp_path / "a.safetensors"
    weights.save(path, variables)
    others = jax.tree.map(np.zeros_like, variables)
    back = weights.fill(others, weights.read(path), weights.own(variables))

    def assert_same_bits(got, want):
        np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))

    jax.tree.map(assert_same_bits, back, variables)


def test_names_in_our_own_files_stay(tmp_path):
    weights.save(tmp_path / "a.safetensors", any_bits(UNet(3, widths=(4, 6))))
    blocks = ("down_0", "down_1", "up_0")
    norms = [f"{block}/norm_{i}" for block in blocks for i in (0, 1)]
    assert set(weights.read(tmp_path / "a.safetensors")) == {
        *(f"params/{block}/conv_{i}/kernel" for block in blocks for i in (0, 1)),
        *(f"params/{norm}/{leaf}" for norm in norms for leaf in ("scale", "bias")),
        *(f"batch_stats/{norm}/{leaf}" for norm in norms for leaf in ("mean", "var")),
        *(
            f"params/{name}/{leaf}"
            for name in ("upconv_0", "logits")
            for leaf in ("kernel", "bias")
        ),
    }


def test_others_may_read_a_saved_file_as_any_other(tmp_path):
    (tmp_path / "plain").touch()
    weights.save(tmp_path / "a.safetensors", {"params": {"w": np.ones(3, np.float32)}})
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
