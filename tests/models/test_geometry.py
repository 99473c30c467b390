"""Which sizes a network takes and what it says of wrong ones.

That halos and contexts are right is shown by gradients in the tests of the networks.
"""

import itertools
import re

import pytest

from segjax.errors import SegjaxError
from segjax.models.geometry import Geometry

GEOMETRIES = [
    Geometry(4, 4, 4, None, None),
    Geometry(4, 44, 4, 23, 22, margin=20),
    Geometry(3, 5, 3, 1, 1, margin=1),
    Geometry(1, 1, 32, None, None),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_fit_is_the_smallest_side_that_covers(geometry):
    sides = [geometry.minimum + i * geometry.step for i in range(40)]
    for size in range(1, 80 if geometry.step > 1 else 40):
        covering = [side for side in sides if side - 2 * geometry.margin >= size]
        assert geometry.fit(size) == covering[0], size


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_check_takes_the_good_sides_and_names_the_nearest(geometry):
    last = geometry.minimum + 3 * geometry.step
    sides = set(range(geometry.minimum, last + 1, geometry.step))
    tried = range(1, last + 1)

    def nearest(side):
        if side in sides:
            return {side}
        below, above = [n for n in sides if n < side], [n for n in sides if n > side]
        return {*sorted(below)[-1:], *sorted(above)[:1]}

    # Every side as height and as width, beside a good and beside a bad one.
    bad = [side for side in tried if side not in sides][:1]
    others = [geometry.minimum, *bad]
    for height, width in [*itertools.product(tried, others), *itertools.product(others, tried)]:
        if {height, width} <= sides:
            geometry.check(height, width)
            continue
        with pytest.raises(SegjaxError, match=f"got {height}×{width}\\. ") as error:
            geometry.check(height, width)
        heights, widths = re.search("heights: (.*); widths: (.*?)\\.", str(error.value)).groups()
        heights, widths = ({int(n) for n in text.split(" or ")} for text in (heights, widths))
        assert (heights, widths) == (nearest(height), nearest(width))
        for good in itertools.product(heights, widths):
            geometry.check(*good)


@pytest.mark.parametrize(
    "height, width, text",
    [
        (50, 48, "got 50×48. Nearest heights: 48 or 52; widths: 48. "),
        (48, 50, "got 48×50. Nearest heights: 48; widths: 48 or 52. "),
        (43, 51, "got 43×51. Nearest heights: 44; widths: 48 or 52. "),
    ],
)
def test_check_says_what_and_how_to_mend_it(height, width, text):
    start = re.escape("The network takes sides of 44 + any multiple of 4 pixels; " + text)
    with pytest.raises(SegjaxError, match=f"^{start}Crop .* pads"):
        Geometry(4, 44, 4, 23, 22, margin=20).check(height, width)
