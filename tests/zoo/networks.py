"""The networks people really use: random weights, the smallest inputs they take.

A batch of two, but of one where that is large and no batch norm needs two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import monai.networks.nets as monai_nets
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import nn

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """How to make a network, and what to call it with.

    Args:
        factory: makes it, with random weights.
        shape: of its one input.
        submodule: the part that TGD is applied to; all of it if empty.
    """

    factory: Callable[[], nn.Module]
    shape: Shape
    submodule: str = ""

    def make(self, size: int | None = None) -> tuple[nn.Module, torch.Tensor]:
        """The network in evaluation mode and an input, of `size` in all axes of space if given; always the same."""
        shape = self.shape if size is None else (*self.shape[:2], *[size] * (len(self.shape) - 2))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = self.factory().eval()
            return (net.get_submodule(self.submodule) if self.submodule else net), torch.randn(shape)


# Networks whose head, windows or patches want one size.
_TORCHVISION_SIZES = {"inception_v3": 299, "maxvit_t": 224, "vit_h_14": 224}
# Frames and size.
_VIDEO_SIZES = {"s3d": (14, 224), "swin3d": (8, 64), "mvit": (8, 64)}
_BATCH_OF_ONE = ("vit", "mvit", "s3d", "swin3d", "convnext")
_TIMM = {
    # ResNet and its kin
    **dict.fromkeys(
        ("resnet18", "resnet50", "resnetv2_50", "resnext50_32x4d", "res2net50_26w_4s", "res2next50"), 64
    ),
    **dict.fromkeys(
        ("resnest14d", "seresnet50", "skresnet18", "ecaresnet26t", "gcresnet33ts", "resnetblur50"), 64
    ),
    **dict.fromkeys(("legacy_seresnet18", "legacy_seresnext26_32x4d", "resnetv2_50x1_bit", "resnet51q"), 64),
    # dense, dual path, aggregation
    **dict.fromkeys(("densenet121", "densenetblur121d", "dla34", "dla60_res2net", "dpn68", "vovnet39a"), 64),
    **dict.fromkeys(("ese_vovnet19b_dw", "eca_vovnet39b", "cspresnet50", "cspresnext50", "cspdarknet53"), 64),
    **dict.fromkeys(("cs3darknet_m", "cs3edgenet_x", "darknet17", "hrnet_w18_small", "selecsls42b"), 64),
    # Inception and Xception
    **dict.fromkeys(
        ("inception_v3", "inception_v4", "inception_resnet_v2", "xception41", "legacy_xception"), 96
    ),
    "inception_next_atto": 96,
    # mobile networks
    **dict.fromkeys(
        ("mobilenetv1_100", "mobilenetv2_100", "mobilenetv3_large_100", "mobilenetv4_conv_small"), 64
    ),
    **dict.fromkeys(
        ("mobilenetv4_hybrid_medium", "mnasnet_100", "spnasnet_100", "fbnetc_100", "lcnet_050"), 64
    ),
    **dict.fromkeys(
        ("efficientnet_b0", "efficientnetv2_rw_t", "tf_efficientnet_b0", "tf_efficientnetv2_b0"), 64
    ),
    **dict.fromkeys(
        ("efficientnet_es", "tf_efficientnet_lite0", "mixnet_s", "tf_mixnet_s", "ghostnet_100"), 64
    ),
    **dict.fromkeys(
        ("ghostnetv2_100", "rexnet_100", "rexnetr_100", "hardcorenas_a", "tinynet_a", "semnasnet_075"), 64
    ),
    **dict.fromkeys(
        ("mobileone_s0", "repvgg_a2", "repghostnet_050", "fastvit_t8", "repvit_m0_9", "fasternet_t0"), 64
    ),
    # without batch norm, standardised weights
    **dict.fromkeys(("nfnet_l0", "nf_regnet_b0", "nf_resnet26"), 64),
    # ConvNeXt, RegNet and later
    **dict.fromkeys(("convnext_atto", "convnextv2_atto", "convnext_tiny", "regnetx_002", "regnety_002"), 64),
    **dict.fromkeys(("regnetz_b16", "regnetv_040", "edgenext_xx_small", "hgnet_tiny", "hgnetv2_b0"), 64),
    **dict.fromkeys(("tresnet_m", "poolformer_s12", "caformer_s18"), 64),
    **dict.fromkeys(("starnet_s1", "mambaout_femto", "tf_efficientnet_cc_b0_4e", "convmixer_768_32"), 64),
    **dict.fromkeys(("coatnet_nano_rw_224", "focalnet_tiny_srf", "efficientvit_m0"), 224),
}


def _of_kind(found: dict[str, Any], name: str, default: Any) -> Any:
    """What is noted for the beginning of a name."""
    return next((value for kind, value in found.items() if name.startswith(kind)), default)


def _torchvision() -> dict[str, Network]:
    models = torchvision.models
    found = {}
    for name in models.list_models(models):
        size = _of_kind(_TORCHVISION_SIZES, name, 64)
        made = {
            "googlenet": {"init_weights": True},
            "inception_v3": {"init_weights": True},
            "vit": {"image_size": size},
        }
        make = partial(models.get_model, name, weights=None, **_of_kind(made, name, {}))
        batch = 1 if name.startswith(_BATCH_OF_ONE) else 2
        found[f"torchvision/{name}"] = Network(make, (batch, 3, size, size))
    for name in models.list_models(models.segmentation):
        make = partial(models.get_model, name, weights=None, weights_backbone=None)
        found[f"torchvision/{name}"] = Network(make, (2, 3, 64, 64))
    for name in models.list_models(models.video):
        frames, size = _of_kind(_VIDEO_SIZES, name, (8, 32))
        shape = (1 if name.startswith(_BATCH_OF_ONE) else 2, 3, frames, size, size)
        make = partial(models.get_model, name, weights=None)
        if name.startswith("mvit"):
            make = partial(_small_mvit, make, frames, size)
        found[f"torchvision/{name}"] = Network(make, shape)
    detector = partial(
        models.get_model, "fasterrcnn_mobilenet_v3_large_fpn", weights=None, weights_backbone=None
    )
    found["torchvision/fasterrcnn.backbone"] = Network(detector, (2, 3, 64, 64), "backbone")
    return found


def _small_mvit(make: Callable[[], nn.Module], frames: int, size: int) -> nn.Module:
    """Of an input smaller than the published one, which the functions of torchvision write into its position code."""
    family = torchvision.models.video.mvit
    smaller = {"temporal_size": frames, "spatial_size": (size, size)}

    def build(**given: Any) -> nn.Module:
        return original(**{**given, **smaller})

    original = family._mvit
    with mock.patch.object(family, "_mvit", build):
        return make()


def _timm() -> dict[str, Network]:
    return {
        f"timm/{name}": Network(partial(timm.create_model, name), (2, 3, size, size))
        for name, size in _TIMM.items()
    }


_SINGLE = ("VNet", "SwinUNETR", "BasicUNet", "BasicUNetPlusPlus", "DynUNet", "UNet", "SegResNet")
_CUBES = ("UNETR", "DenseNet121", "EfficientNetBN", "FlexibleUNet")


def _monai() -> dict[str, Network]:
    small = {"channels": (8, 16, 32), "strides": (2, 2)}
    dynamic = {"kernel_size": (3, 3, 3), "strides": (1, 2, 2), "upsample_kernel_size": (2, 2)}
    both: dict[str, tuple[str, dict[str, Any], int]] = {
        "UNet": ("UNet", {"in_channels": 1, "out_channels": 2, "num_res_units": 2, **small}, 16),
        "BasicUNet": ("BasicUNet", {"features": (8, 8, 16, 16, 32, 8)}, 32),
        "BasicUNetPlusPlus": ("BasicUNetPlusPlus", {"features": (8, 8, 16, 16, 32, 8)}, 32),
        "VNet": ("VNet", {}, 32),
        "SegResNet": ("SegResNet", {"init_filters": 8, "in_channels": 1, "out_channels": 2}, 16),
        "SegResNetDS": ("SegResNetDS", {"init_filters": 8, "in_channels": 1, "out_channels": 2}, 32),
        "DynUNet": ("DynUNet", {"in_channels": 1, "out_channels": 2, "filters": (8, 16, 32), **dynamic}, 16),
        "AttentionUnet": ("AttentionUnet", {"in_channels": 1, "out_channels": 2, **small}, 16),
        "HighResNet": ("HighResNet", {"in_channels": 1, "out_channels": 2}, 16),
        "RegUNet": ("RegUNet", {"in_channels": 1, "num_channel_initial": 8, "depth": 2}, 16),
        "DenseNet121": ("DenseNet121", {"in_channels": 1, "out_channels": 2}, 32),
        "SEResNet50": ("SEResNet50", {"in_channels": 1, "num_classes": 2}, 32),
        "EfficientNetBN": (
            "EfficientNetBN",
            {"model_name": "efficientnet-b0", "pretrained": False, "in_channels": 1, "num_classes": 2},
            32,
        ),
        "ResNet": (
            "ResNet",
            {
                "block": "basic",
                "layers": [1, 1, 1, 1],
                "block_inplanes": [8, 16, 32, 64],
                "n_input_channels": 1,
            },
            32,
        ),
        "FlexibleUNet": (
            "FlexibleUNet",
            {"in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0"},
            32,
        ),
        "SwinUNETR": (
            "SwinUNETR",
            {"in_channels": 1, "out_channels": 2, "feature_size": 12, "depths": (2, 1, 1, 1)},
            64,
        ),
        "UNETR": ("UNETR", {"in_channels": 1, "out_channels": 2, "feature_size": 8, "hidden_size": 48}, 32),
    }
    found = {}
    for dims in (2, 3):
        for name, (kind, given, size) in both.items():
            channels = 3 if name in ("FlexibleUNet",) else 1
            settings = {"spatial_dims": dims, **given, **_monai_extra(name, dims, size)}
            make = partial(getattr(monai_nets, kind), **settings)
            batch = 1 if name in _SINGLE else 2
            # In 3-d a beam where the network takes one: the convolutions of float64 are slow there.
            beam = dims == 3 and name not in _CUBES
            shape = (size, size // 2, size // 2) if beam else (size,) * dims
            found[f"monai/{name}-{dims}d"] = Network(make, (batch, channels, *shape))
    for shape, mode in (((2, 1, 64, 64), "bilinear"), ((2, 1, 64, 32, 32), "trilinear")):
        dims = len(shape) - 2
        given = {"in_channels": 1, "out_channels": 2, "psp_block_num": 0, "upsample_mode": mode}
        found[f"monai/AHNet-{dims}d"] = Network(partial(monai_nets.AHNet, spatial_dims=dims, **given), shape)
    return found


def _monai_extra(name: str, dims: int, size: int) -> dict[str, Any]:
    if name == "RegUNet":
        return {"out_kernel_initializer": "kaiming_uniform", "out_activation": None, "out_channels": dims}
    if name == "UNETR":
        return {"img_size": size, "mlp_dim": 64, "num_heads": 4}
    if name == "VNet":
        return {"in_channels": 1, "out_channels": 2}
    return {}


def _smp() -> dict[str, Network]:
    found = {}
    for name in smp.MODEL_ARCHITECTURES_MAPPING:
        for encoder in ("resnet18", "mobilenet_v2"):
            kind, used = smp.MODEL_ARCHITECTURES_MAPPING[name], encoder
            if name == "dpt":
                used = {"resnet18": "tu-vit_tiny_patch16_224", "mobilenet_v2": "tu-vit_small_patch16_224"}[
                    encoder
                ]
            given = {"dynamic_img_size": True} if name == "dpt" else {}
            make = partial(kind, encoder_name=used, encoder_weights=None, **given)
            size = 128 if name == "pan" else 64
            found[f"smp/{kind.__name__}-{used}"] = Network(make, (2, 3, size, size))
    return found


class PartialLargeKernels(nn.Module):
    """Super-resolution as PLKSR writes it: large kernels over the first channels, in place."""

    class Block(nn.Module):
        """Mixing over channels, a large kernel over some of them, element-wise attention, a residual."""

        def __init__(self, channels: int, part: int) -> None:
            super().__init__()
            self.part = part
            self.mixer = nn.Sequential(
                nn.Conv2d(channels, 2 * channels, 3, padding=1),
                nn.GELU(),
                nn.Conv2d(2 * channels, channels, 3, padding=1),
            )
            self.large = nn.Conv2d(part, part, 13, padding=6)
            self.attention = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.Sigmoid())
            self.refine = nn.Conv2d(channels, channels, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.mixer(x)
            y[:, : self.part] = self.large(y[:, : self.part])
            return self.refine(y * self.attention(y)) + x

    def __init__(self, channels: int = 24, part: int = 8, blocks: int = 3, scale: int = 2) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1),
            *(self.Block(channels, part) for _ in range(blocks)),
            nn.Conv2d(channels, 3 * scale**2, 3, padding=1),
        )
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        copies = torch.repeat_interleave(x, self.scale**2, dim=1)
        return nn.functional.pixel_shuffle(self.features(x) + copies, self.scale)


# Networks that overwrite what they have read, which gradients need: for evaluation only.
FORWARD_ONLY = {
    "timm/fasternet_t0, by slices": Network(
        partial(timm.create_model, "fasternet_t0", pconv_fw_type="slicing"), (2, 3, 64, 64)
    ),
    "PLKSR": Network(PartialLargeKernels, (2, 3, 16, 16)),
}
NETWORKS: dict[str, Network] = {**_torchvision(), **_timm(), **_monai(), **_smp()}
# More than 600 million parameters.
GIANTS = ("torchvision/regnet_y_128gf", "torchvision/vit_h_14")
