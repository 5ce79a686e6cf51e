"""`build`: the network that a RunConfig names, initialised from its seed."""

from __future__ import annotations

import torch
from torch import nn

from experiments.lab.declare.config import Model, RunConfig
from experiments.lab.models.causal import causal_transformer
from experiments.lab.models.convnets import keskar_c1, keskar_c2, small_conv
from experiments.lab.models.dropout import number_dropout_layers
from experiments.lab.models.mlp import mlp
from experiments.lab.models.norms import Normalizer
from experiments.lab.models.own import own_model
from experiments.lab.models.quadratic import Quadratic
from experiments.lab.models.resnet import resnet
from experiments.lab.models.vit import vit
from experiments.lab.models.wrn import wide_resnet


def build(config: RunConfig, shape: tuple[int, ...], outputs: int) -> nn.Module:
    """The network of `config` for inputs [B, *shape] and outputs [B, outputs], of tokens [B, T, outputs], on the CPU in float32.

    Weights follow torch's default initialisers (residual networks: He's), drawn from a stream of `config.seed` alone: the
    caller's global random state is left as it was, and the weights are the same whatever device computes with them later.
    """
    if not isinstance(config.model, Model):
        model = own_model(config, shape, outputs)
        number_dropout_layers(model)
        return model
    normalizer = Normalizer(config.norm, config.norm_batch)
    image = (shape[0], shape[1], shape[-1]) if len(shape) == 3 else (1, 1, 1)  # `prepare` gives networks of images no other
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        match config.model:
            case Model.MLP:
                model = mlp(shape, outputs, normalizer, width=config.width or 512, depth=config.depth or 5)
            case Model.SMALL_CONV:
                model = small_conv(image, outputs, normalizer)
            case Model.KESKAR_C1:
                model = keskar_c1(image, outputs, normalizer, dropout=config.dropout)
            case Model.KESKAR_C2:
                model = keskar_c2(image, outputs, normalizer, dropout=config.dropout)
            case Model.RESNET8 | Model.RESNET20 | Model.RESNET32 | Model.RESNET44 | Model.RESNET56:
                model = resnet(image, outputs, normalizer, depth=int(config.model.value.removeprefix("resnet")))
            case Model.WRN16_4:
                model = wide_resnet(image, outputs, normalizer, depth=16, k=4)
            case Model.WRN28_10:
                model = wide_resnet(image, outputs, normalizer, depth=28, k=10)
            case Model.VIT:
                model = vit(image, outputs)
            case Model.CAUSAL_TRANSFORMER:
                model = causal_transformer(shape[0], outputs)
            case Model.QUADRATIC:
                model = Quadratic(image)
    number_dropout_layers(model)
    return model
