"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv 1605.07146, Table 1): 6n + 4 layers, pre-activation, wider by k."""

from __future__ import annotations

from torch import Tensor, nn

from experiments.lab.models.norms import Normalizer


class WideBlock(nn.Module):
    """a = relu(norm(x)); shortcut + conv(relu(norm(conv(a)))), 3x3 convolutions without bias, no dropout.

    The shortcut is x itself, and where the shape changes a 1x1 convolution of a with the block's stride.
    """

    def __init__(self, channels: int, width: int, stride: int, norm: Normalizer) -> None:
        super().__init__()
        self.before = nn.Sequential(norm(channels), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(channels, width, 3, stride, 1, bias=False), norm(width), nn.ReLU(),
                                  nn.Conv2d(width, width, 3, 1, 1, bias=False))
        same = channels == width and stride == 1
        self.shortcut = None if same else nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.before(x)
        return (x if self.shortcut is None else self.shortcut(active)) + self.body(active)


def wide_resnet(shape: tuple[int, int, int], classes: int, norm: Normalizer, *, depth: int, k: int) -> nn.Sequential:
    """[B, C, H, W] -> [B, classes]; `depth` = 6n + 4, three stages of n blocks and 16k, 32k, 64k channels; norm, ReLU, global
    average pooling, one linear layer. He et al. 2015's normal initialisation (fan-in) for convolutions. With batch norm on
    CIFAR-10 2.7 million parameters at 16-4 and 36.5 million at 28-10."""
    channels = 16
    layers: list[nn.Module] = [nn.Conv2d(shape[0], channels, 3, 1, 1, bias=False)]
    for stage, width in enumerate((16 * k, 32 * k, 64 * k)):
        for block in range((depth - 4) // 6):
            layers.append(WideBlock(channels, width, 2 if stage and not block else 1, norm))
            channels = width
    layers += [norm(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    for module in (found for layer in layers for found in layer.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return nn.Sequential(*layers)
