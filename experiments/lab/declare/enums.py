"""The words of a configuration: what its fields may be."""

from __future__ import annotations

from enum import StrEnum


class Model(StrEnum):
    MLP = "mlp"
    SMALL_CONV = "small-conv"
    KESKAR_C1 = "keskar-c1"
    KESKAR_C2 = "keskar-c2"
    RESNET8 = "resnet8"
    RESNET20 = "resnet20"
    RESNET32 = "resnet32"
    RESNET44 = "resnet44"
    RESNET56 = "resnet56"
    WRN16_4 = "wrn16-4"
    WRN28_10 = "wrn28-10"
    VIT = "vit"
    CAUSAL_TRANSFORMER = "causal-transformer"
    QUADRATIC = "quadratic"


class Norm(StrEnum):
    NONE = "none"
    BATCH = "batch"
    GHOST = "ghost"
    GROUP = "group"
    LAYER = "layer"


class Optimizer(StrEnum):
    SGD = "sgd"
    ADAM = "adam"
    ADAMW = "adamw"
    LARS = "lars"
    LAMB = "lamb"


class Loss(StrEnum):
    """What is minimised; targets of -100 count nothing, columns are averaged."""

    CROSS_ENTROPY = "cross_entropy"
    MSE = "mse"
    BCE = "bce"


class Scaling(StrEnum):
    """How the learning rate follows the batch size B: peak LR = lr * (B / base_batch_size) ** {none: 0, sqrt: 1/2, linear: 1}."""

    NONE = "none"
    SQRT = "sqrt"
    LINEAR = "linear"


class Schedule(StrEnum):
    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"
    STEP = "step"


class Budget(StrEnum):
    """When training stops. Never defaulted: most disputes about batch size are disputes about the budget."""

    EPOCHS = "epochs"
    STEPS = "steps"
    TRAIN_LOSS = "train_loss"
    PLATEAU = "plateau"


class TrainDraw(StrEnum):
    """Which examples are the first ones: of the training split, for every subset that is measured, and of the test split."""

    FIRST = "first"
    FIXED = "fixed"


class Augment(StrEnum):
    NONE = "none"
    CROP_FLIP = "crop-flip"


class Precision(StrEnum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT64 = "float64"
