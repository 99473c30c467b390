"""The networks of step_time.py in plain PyTorch, with the names of checkpoints we can fill from.

Each takes (B, 3, H, W) and returns a tuple: the logits and, in training, those of auxiliary heads.
Where the originals have a bias before a batch norm, which takes it away again, these have none.
"""

import torch
from torch import nn
from torch.nn import functional as F


class _DoubleConv(nn.Module):
    def __init__(self, before: int, after: int):
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (before, after):
            conv = nn.Conv2d(channels, after, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(after), nn.ReLU()]
        self.double_conv = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.double_conv(x)


class UNet(nn.Module):
    """milesial/Pytorch-UNet: `weights.unet.milesial`."""

    def __init__(self, classes: int, widths: tuple[int, ...]):
        super().__init__()
        self.levels = range(1, len(widths))
        self.inc = _DoubleConv(3, widths[0])
        for i in self.levels:
            down = nn.Sequential(nn.MaxPool2d(2), _DoubleConv(widths[i - 1], widths[i]))
            self.add_module(f"down{i}", nn.ModuleDict({"maxpool_conv": down}))
            below, width = widths[-i], widths[-i - 1]
            up = nn.ConvTranspose2d(below, width, 2, stride=2)
            conv = _DoubleConv(2 * width, width)
            self.add_module(f"up{i}", nn.ModuleDict({"up": up, "conv": conv}))
        self.outc = nn.ModuleDict({"conv": nn.Conv2d(widths[0], classes, 1)})

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps = [self.inc(x)]
        for i in self.levels:
            maps.append(self.get_submodule(f"down{i}.maxpool_conv")(maps[-1]))
        x = maps.pop()
        for i in self.levels:
            x = self.get_submodule(f"up{i}.up")(x)
            x = self.get_submodule(f"up{i}.conv")(torch.cat([maps.pop(), x], 1))
        return (self.outc["conv"](x),)


class NestedUNet(nn.Module):
    """4uiiurz1/pytorch-nested-unet, one head or all: `weights.unetplusplus.nested_unet`."""

    def __init__(self, classes: int, widths: tuple[int, ...], *, deep_supervision: bool = False):
        super().__init__()
        self.levels = len(widths)
        for i, width in enumerate(widths):
            for j in range(self.levels - i):
                before = j * width + widths[i + 1] if j else widths[i - 1] if i else 3
                node = {}
                for n, channels in ((1, before), (2, width)):
                    node[f"conv{n}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
                    node[f"bn{n}"] = nn.BatchNorm2d(width)
                self.add_module(f"conv{i}_{j}", nn.ModuleDict(node))
        self.heads = {self.levels - 1: "final"}  # by the j of x[0, j]
        if deep_supervision:
            self.heads = {j: f"final{j}" for j in range(1, self.levels)}
        for name in self.heads.values():
            self.add_module(name, nn.Conv2d(widths[0], classes, 1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows: list[list[torch.Tensor]] = []
        for depth in range(self.levels):
            rows.append([self._node(depth, 0, F.max_pool2d(rows[-1][0], 2) if depth else x)])
            for j, i in enumerate(reversed(range(depth)), 1):
                up = F.interpolate(
                    rows[i + 1][j - 1], scale_factor=2, mode="bilinear", align_corners=True
                )
                rows[i].append(self._node(i, j, torch.cat([*rows[i], up], 1)))
        return tuple(self.get_submodule(name)(rows[0][j]) for j, name in self.heads.items())

    def _node(self, i: int, j: int, x: torch.Tensor) -> torch.Tensor:
        node = self.get_submodule(f"conv{i}_{j}")
        for n in (1, 2):
            x = F.relu(node[f"bn{n}"](node[f"conv{n}"](x)))
        return x


class FCN8s(nn.Module):
    """wkentaro/pytorch-fcn's, with elementwise dropout: `weights.pytorch_fcn.fcn`."""

    def __init__(
        self, classes: int, widths: tuple[int, ...], classifier_width: int, dropout: float
    ):
        super().__init__()
        self.blocks: list[list[str]] = []
        self.dropout = dropout
        channels = 3
        for block, (width, depth) in enumerate(zip(widths, (2, 2, 3, 3, 3), strict=True), 1):
            self.blocks.append([f"conv{block}_{i}" for i in range(1, depth + 1)])
            for name in self.blocks[-1]:
                padding = 100 if name == "conv1_1" else 1
                self.add_module(name, nn.Conv2d(channels, width, 3, padding=padding))
                channels = width
        self.fc6 = nn.Conv2d(channels, classifier_width, 7)
        self.fc7 = nn.Conv2d(classifier_width, classifier_width, 1)
        self.score_fr = nn.Conv2d(classifier_width, classes, 1)
        self.score_pool4 = nn.Conv2d(widths[3], classes, 1)
        self.score_pool3 = nn.Conv2d(widths[2], classes, 1)
        for module in self.children():
            nn.init.kaiming_normal_(module.weight)  # else the scores are all but their biases
        for name, s in (("upscore2", 2), ("upscore_pool4", 2), ("upscore8", 8)):
            up = nn.ConvTranspose2d(classes, classes, 2 * s, s, bias=False).requires_grad_(False)
            line = 1 - (torch.arange(2 * s) - s + 0.5).abs() / s
            up.weight.copy_(torch.eye(classes)[:, :, None, None] * torch.outer(line, line))
            self.add_module(name, up)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        height, width = x.shape[2:]
        pools = []
        for block in self.blocks:
            for name in block:
                x = F.relu(self.get_submodule(name)(x))
            x = F.max_pool2d(x, 2, ceil_mode=True)
            pools.append(x)
        for layer in (self.fc6, self.fc7):
            x = F.dropout(F.relu(layer(x)), self.dropout, self.training)
        x = self._add(self.upscore2(self.score_fr(x)), self.score_pool4(pools[3]), 5)
        x = self._add(self.upscore_pool4(x), self.score_pool3(pools[2]), 9)
        return (self.upscore8(x)[:, :, 31 : 31 + height, 31 : 31 + width],)

    def _add(self, x: torch.Tensor, skip: torch.Tensor, offset: int) -> torch.Tensor:
        height, width = x.shape[2:]
        return x + skip[:, :, offset : offset + height, offset : offset + width]


class _Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
        )
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.attn["qkv"](self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        attended = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        x = x + self.attn["proj"](attended.transpose(1, 2).flatten(2))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class _ViT(nn.Module):
    def __init__(self, depth: int, width: int, heads: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 16, 16)})
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + grid[0] * grid[1], width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The maps after each block, for pictures of the grid's size."""
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x[:, 1:].unflatten(1, self.grid))
        return maps


class _UpHead(nn.Module):
    def __init__(self, classes: int, before: int, channels: int, scales: tuple[int, ...]):
        super().__init__()
        self.scales = scales
        self.norm = nn.LayerNorm(before, eps=1e-6)
        for i in range(len(scales)):
            conv = nn.Conv2d(channels if i else before, channels, 3, padding=1, bias=False)
            self.add_module(f"conv_{i}", conv)
            self.add_module(f"syncbn_fc_{i}", nn.BatchNorm2d(channels))
        self.add_module(f"conv_{len(scales)}", nn.Conv2d(channels, classes, 1))

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        x = self.norm(x).permute(0, 3, 1, 2)
        for i, scale in enumerate(self.scales, 1):
            norm = self.get_submodule(f"syncbn_fc_{i - 1}")
            x = F.relu(norm(self.get_submodule(f"conv_{i - 1}")(x)))
            if i == len(self.scales):
                x = self.get_submodule(f"conv_{i}")(x)
            x = F.interpolate(x, scale_factor=scale, mode="bilinear")
        return x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear")


class SETRPUP(nn.Module):
    """fudan-zvg/SETR's: `weights.setr.authors`."""

    def __init__(
        self,
        classes: int,
        *,
        depth: int,
        width: int,
        heads: int,
        grid: tuple[int, int],
        channels: int,
        taps: tuple[int, ...],
    ):
        super().__init__()
        self.taps = taps
        self.backbone = _ViT(depth, width, heads, grid)
        self.decode_head = _UpHead(classes, width, channels, (2, 2, 2, 2))
        self.auxiliary_head = nn.ModuleList(_UpHead(classes, width, channels, (4,)) for _ in taps)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps, size = self.backbone(x), x.shape[2:]
        logits = self.decode_head(maps[-1], size)
        if not self.training:
            return (logits,)
        heads = zip(self.auxiliary_head, self.taps, strict=True)
        return (logits, *(head(maps[tap], size) for head, tap in heads))
