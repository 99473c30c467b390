"""Filling: every leaf and every tensor is accounted for."""

import numpy as np
import pytest

from segjax.errors import SegjaxError
from segjax.weights.table import Entry, Table, conv, deconv, fill, linear, torch_conv, torch_norm

VARIABLES = {
    "params": {"a": {"kernel": np.zeros((3, 3, 2, 4), np.float32)}, "b": np.zeros(4, np.float32)},
}
TABLE = Table(
    {"params/a/kernel": Entry(("a.weight",), conv), "params/b": Entry(("b0", "b1"), np.add)},
    unused=("*.num_batches_tracked",),
)


def tensors(**changed):
    rng = np.random.default_rng(0)
    found = {"a.weight": rng.normal(size=(4, 2, 3, 3)), "b0": np.arange(4.0), "b1": np.ones(4)}
    found |= {name.replace("__", "."): value for name, value in changed.items()}
    return {name: value for name, value in found.items() if value is not None}


def test_all_is_taken_in_our_shape_and_type():
    given = tensors(norm__num_batches_tracked=np.array(9))
    got = fill(VARIABLES, given, TABLE)
    assert got["params"]["a"]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(
        got["params"]["a"]["kernel"][1, 2, 0, 3], given["a.weight"][3, 0, 1, 2].astype(np.float32)
    )
    np.testing.assert_array_equal(got["params"]["b"], [1, 2, 3, 4])
    assert not VARIABLES["params"]["b"].any()


@pytest.mark.parametrize(
    "given, text, expected",
    [
        (tensors(b1=None), r"missing: params/b \(4,\): no b1", ("params/b",)),
        (tensors(extra__w=np.zeros((2, 3))), r"left over: extra\.w \(2, 3\)", ("extra.*",)),
        (
            tensors(a__weight=np.zeros((4, 5, 3, 3))),
            r"other shape: params/a/kernel \(3, 3, 2, 4\): a\.weight \(4, 5, 3, 3\), that is "
            r"\(3, 3, 5, 4\)",
            ("params/a/*",),
        ),
        (tensors(a__weight=np.zeros(7)), r"other shape: .* a\.weight \(7,\)\n", ("*kernel",)),
    ],
)
def test_what_does_not_fit_is_listed_unless_expected(given, text, expected):
    with pytest.raises(SegjaxError, match=text):
        fill(VARIABLES, given, TABLE)
    got = fill(VARIABLES, given, TABLE, expected=expected)
    assert got["params"]["a"]["kernel"].shape == (3, 3, 2, 4)
    with pytest.raises(SegjaxError, match=text):
        fill(VARIABLES, given, TABLE, expected=("other*",))


def test_everything_wrong_is_told_at_once():
    given = tensors(b1=None, c=np.zeros(1), a__weight=np.zeros((1, 1, 1, 1)))
    with pytest.raises(SegjaxError, match=r"(?s)other shape: .*missing: .*left over: c") as error:
        fill(VARIABLES, given, TABLE)
    assert "Set the network's fields" in str(error.value)


def test_a_leaf_that_the_layout_does_not_know():
    table = Table({"params/b": TABLE.entries["params/b"]})
    with pytest.raises(SegjaxError, match="missing: params/a/kernel: the layout has nothing"):
        fill(VARIABLES, tensors(), table)


def test_conversions():
    x = np.arange(120).reshape(2, 3, 4, 5)
    assert conv(x)[1, 2, 2, 1] == x[1, 2, 1, 2]
    assert deconv(x)[1, 2, 0, 1] == x[0, 1, 1, 2]
    assert linear(x[0, 0])[4, 3] == x[0, 0, 3, 4]


def test_names_of_pytorch_layers():
    assert set(torch_conv("x/c", "m.0")) == {"params/x/c/kernel", "params/x/c/bias"}
    assert set(torch_conv("x/c", "m.0", bias=False)) == {"params/x/c/kernel"}
    entries = torch_norm("x/n", "m.1")
    assert entries["batch_stats/x/n/var"].names == ("m.1.running_var",)
    assert entries["params/x/n/scale"].names == ("m.1.weight",)
