"""What accelerators hold and how fast they are: their makers' data sheets, one row each.

Rates are peaks, which no program reaches: they bound a step's time from below, and a step's FLOP/s
are a share of them.
"""

from typing import NamedTuple


class Device(NamedTuple):
    """One device as JAX counts them, per device_kind.

    name: short, as it is asked for.  kinds: `jax.Device.device_kind`, in all its spellings.
    memory: bytes that a program can have.  bandwidth: of that memory, bytes/s.
    flops: of dense products in bfloat16, FLOP/s (float16 on NVIDIA's Volta and Turing, which know
        no bfloat16).  flops_float32: of float32 arrays at JAX's default precision: one bfloat16
        pass on a TPU, TF32 on a GPU that has it.
    link: bytes/s that it can send to others, over all its links together.
    source: the data sheet.
    """

    name: str
    kinds: tuple[str, ...]
    memory: float
    bandwidth: float
    flops: float
    flops_float32: float
    link: float
    source: str


def find(kind: str) -> Device | None:
    """The device of that `device_kind`, such as "TPU v5 lite", or short name, such as "h100"."""
    word = kind.strip().lower()
    for device in DEVICES:
        if word in (device.name, *(k.lower() for k in device.kinds)):
            return device
    return None


def _gpu(name: str, kinds: tuple[str, ...], sheet: str, figures: tuple[float, ...]) -> Device:
    gib, gb_s, tflops, tflops32, link = figures
    rates = (gb_s * 1e9, tflops * 1e12, tflops32 * 1e12, link * 1e9)
    full = tuple(f"NVIDIA {kind}" for kind in kinds)
    return Device(name, full, gib * 2**30, *rates, f"NVIDIA {sheet}")


def _tpu(
    name: str, kinds: tuple[str, ...], *, gib: float, gb_s: float, tflops: float, gbit: float
) -> Device:
    peak = tflops * 1e12
    source = f"Google Cloud, TPU {name}"
    return Device(name, kinds, gib * 2**30, gb_s * 1e9, peak, peak, gbit / 8 * 1e9, source)


# Makers count the memory before the system's share: the compiler gives a program on a v5e 15.75 of
# 16 GiB. Links count in one direction: half of what NVIDIA prints, which adds both. Products are
# dense: half of what NVIDIA prints "with sparsity".
DEVICES = (
    _tpu("v4", ("TPU v4",), gib=32, gb_s=1200, tflops=275, gbit=2400),
    _tpu("v5e", ("TPU v5 lite", "TPU v5e"), gib=15.75, gb_s=819, tflops=197, gbit=1600),
    _tpu("v5p", ("TPU v5", "TPU v5p"), gib=95, gb_s=2765, tflops=459, gbit=4800),
    _tpu("v6e", ("TPU v6 lite", "TPU v6e"), gib=32, gb_s=1640, tflops=918, gbit=3200),
    # Of each: GiB and GB/s of the memory, TFLOP/s, those in float32, GB/s of the links.
    _gpu(
        "v100",
        ("Tesla V100-SXM2-16GB", "V100-SXM2-16GB"),
        "V100 data sheet, SXM2",
        (16, 900, 125, 15.7, 150),
    ),
    _gpu(
        "v100-32gb",
        ("Tesla V100-SXM2-32GB", "V100-SXM2-32GB"),
        "V100 data sheet, SXM2",
        (32, 900, 125, 15.7, 150),
    ),
    _gpu("t4", ("Tesla T4", "T4"), "T4 data sheet", (15, 320, 65, 8.1, 16)),
    _gpu(
        "a100-40gb",
        ("A100-SXM4-40GB", "A100-PCIE-40GB"),
        "A100 data sheet, SXM4 40 GB",
        (40, 1555, 312, 156, 300),
    ),
    _gpu(
        "a100",
        ("A100-SXM4-80GB", "A100 80GB PCIe"),
        "A100 data sheet, SXM4 80 GB",
        (80, 2039, 312, 156, 300),
    ),
    _gpu("a10", ("A10",), "A10 data sheet", (22.5, 600, 125, 62.5, 32)),
    _gpu("l4", ("L4",), "L4 data sheet", (22.5, 300, 121, 60, 32)),
    _gpu("l40s", ("L40S",), "L40S data sheet", (45, 864, 362, 183, 32)),
    _gpu("h100", ("H100 80GB HBM3",), "H100 data sheet, SXM5", (79.6, 3350, 989, 494, 450)),
    _gpu("h100-pcie", ("H100 PCIe",), "H100 data sheet, PCIe", (79.6, 2000, 756, 378, 64)),
    _gpu("h200", ("H200",), "H200 data sheet, SXM", (140, 4800, 989, 494, 450)),
    _gpu("rtx3090", ("GeForce RTX 3090",), "GA102 white paper", (24, 936, 71, 35.6, 32)),
    _gpu("rtx4090", ("GeForce RTX 4090",), "Ada white paper", (24, 1008, 165.2, 82.6, 32)),
)
