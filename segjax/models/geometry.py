"""Which sizes a network takes, and which input pixels an output pixel depends on."""

from collections.abc import Callable
from typing import NamedTuple

from jax.core import max_dim

from segjax.errors import SegjaxError


class Geometry(NamedTuple):
    """What a network needs to know of a picture and gives of it, the same for height and width.

    step, minimum: it takes sides of minimum, minimum + step, minimum + 2 step, … pixels.
    stride: a picture that is moved by so many pixels gives logits that are moved by as many, away
        from its borders. Tiles lie at multiples of it.
    halo: how many pixels away, to any side, the farthest input pixel lies that an output pixel
        depends on; None where that is the whole picture.
    context: how many pixels before and after a stride×stride cell of output pixels, itself at
        multiples of stride, the cell depends on: less than the halo, for its pixels share much.
        Where the output is larger than the picture, the cells are counted from the picture's start.
    margin: rows and columns lost at each border: n pixels give n - 2 margin.
    """

    step: int
    minimum: int
    stride: int
    halo: int | None
    context: tuple[int, int] | None
    margin: int = 0

    def fit(self, size: int) -> int:
        """The smallest input side that covers `size` pixels, as does its output."""
        # Not `max`, which cannot compare sizes that an export leaves open.
        beyond = max_dim(size + 2 * max(self.margin, 0) - self.minimum, 0)
        return self.minimum + -(-beyond // self.step) * self.step

    def check(self, height: int, width: int) -> None:
        """Raise SegjaxError where a side is not one that the network takes, naming the nearest."""

        def nearest(side: int) -> list[int]:
            above = self.fit(side - 2 * max(self.margin, 0))
            below = above - self.step
            return [side] if above == side else [n for n in (below, above) if n >= self.minimum]

        good = nearest(height), nearest(width)
        if good != ([height], [width]):
            step = f"{self.minimum} + any multiple of {self.step}"
            raise SegjaxError(
                f"The network takes sides of {step} pixels; got {height}×{width}. Nearest heights: "
                f"{' or '.join(map(str, good[0]))}; widths: {' or '.join(map(str, good[1]))}. "
                "Crop training pictures to one of them; prediction pads and crops by itself."
            )


_COARSEST = 2**12
Span = tuple[int, int]  # first and last index along one axis


def conv_span(out: Span, kernel: int, *, stride: int = 1, pad: int = 0) -> Span:
    """The input indices that the outputs `out` of a convolution or pooling depend on."""
    return out[0] * stride - pad, out[1] * stride - pad + kernel - 1


def deconv_span(out: Span, kernel: int, *, stride: int, pad: int = 0) -> Span:
    """The input indices that the outputs `out` of a transposed convolution depend on.

    Bilinear resizing by an even factor s is one of kernel 2s, stride s and pad s/2; nearest
    neighbour one of kernel s and pad 0.
    """
    return -((kernel - 1 - pad - out[0]) // stride), (out[1] + pad) // stride


def find_reach(needs: Callable[[Span], Span], stride: int) -> tuple[int, tuple[int, int]]:
    """Halo and context of a network that tells which input pixels its output pixels need."""
    if stride > _COARSEST:
        raise SegjaxError(
            f"The network would make one pixel of {stride}×{stride}: it has too many levels. Give "
            f"it fewer widths, for at most {_COARSEST}×{_COARSEST}."
        )
    pixels = range(stride)
    spans = [needs((pixel, pixel)) for pixel in pixels]
    halo = max(max(p - first, last - p) for p, (first, last) in zip(pixels, spans, strict=True))
    before, after = max(-first for first, _ in spans), max(last - stride + 1 for _, last in spans)
    return halo, (before, after)
