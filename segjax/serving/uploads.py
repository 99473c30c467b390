"""An upload -> a picture, within limits, or a refusal that says why. Nothing is written to disk."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from segjax.data.pictures import Ranges, begins_as_tiff, picture_size, read_picture
from segjax.errors import SegjaxError

# Of all that Pillow opens, those whose decoders are in wide use: others start programs (EPS) or
# are seldom looked after.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server takes on."""

    megabytes: float = 16.0
    """Greatest size of an upload, in millions of bytes."""
    megapixels: float = 16.0
    """Greatest number of pixels of a picture, in millions."""
    upload_seconds: float = 30.0
    """Time for the body of a request to arrive."""
    seconds: float = 120.0
    """Time from there to the answer, the wait for others included."""
    waiting: int = 64
    """Requests being served at a time; a further one is sent away with status 503."""
    batch: int = 8
    """Pictures predicted at a time."""
    bucket: int = 64
    """Sides are mirrored up to a multiple of so many pixels, so that pictures of many sizes share a
    program; 1 gives exactly the labels of `predict`, and compiles each size."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise SegjaxError(f"{name} is {value}; expected more than 0.")

    @property
    def bytes(self) -> int:
        """Greatest size of an upload."""
        return int(self.megabytes * 1e6)

    @property
    def pixels(self) -> int:
        """Greatest number of pixels of a picture."""
        return int(self.megapixels * 1e6)


class Refused(Exception):
    """A request that is not served: its HTTP status, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Upload(io.BytesIO):
    """Bytes that messages call an upload, whatever name came with them."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._told = "upload.tif" if begins_as_tiff(data) else "upload"

    def __str__(self) -> str:
        return self._told


def read_upload(data: bytes, *, channels: int, ranges: Ranges, pixels: int) -> np.ndarray:
    """A picture (H, W, channels) as `read_picture` gives it; of several pages the first.

    Args:
        data: the encoded picture.
        channels, ranges: of the network.
        pixels: greatest number; looked at before anything is decoded.

    Raises:
        Refused: it is too large, of another kind, or broken.
    """
    if not data:
        raise Refused(400, "The request has no body. Send the picture's bytes.")
    upload = _Upload(data)
    try:
        if str(upload) == "upload.tif" and ranges:
            _check_samples(upload, pixels * channels)
        else:
            _check_format(data)
        upload.seek(0)
        height, width = picture_size(upload, channels, ranges)
        _check_pixels(height, width, pixels)
        upload.seek(0)
        return read_picture(upload, channels, ranges)
    except SegjaxError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise Refused(413, f"upload: far more than {pixels:,} pixels.") from error
        raise Refused(400, str(error)) from error


def _check_format(data: bytes) -> None:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS):
            return
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused(413, f"upload: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise Refused(
            415, f"upload: no picture of a kind that is taken: {', '.join(FORMATS)}."
        ) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, …
        raise Refused(400, f"upload: cannot be read as a picture: {error}") from error


def _check_pixels(height: int, width: int, pixels: int) -> None:
    if height * width > pixels:
        raise Refused(
            413,
            f"upload: {height}×{width} are {height * width:,} pixels, more than {pixels:,}. Make "
            "it smaller, or label it with `segjax predict`.",
        )


def _check_samples(upload: io.BytesIO, samples: int) -> None:
    """What a TIFF says of all its pages and channels together."""
    import tifffile

    try:
        with tifffile.TiffFile(upload) as file:
            shape: Sequence[int] = file.series[0].shape
    except Exception as error:  # of a file of any content
        raise Refused(400, f"upload: cannot be read as a TIFF: {error}") from error
    if (found := int(np.prod([int(n) for n in shape], dtype=object))) > samples:
        raise Refused(413, f"upload: a TIFF of {found:,} samples, more than {samples:,}.")
