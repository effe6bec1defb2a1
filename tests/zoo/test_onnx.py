"""Networks people use, as ONNX files: the map that is read from the file is the network's own, channel by channel.

And files that people made: those in wheels of PyPI, where they are installed.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path

import pytest
import torch

from tests.strategies.case import randomise
from tests.zoo.networks import NETWORKS
from tgdsurgery import UnsupportedOpError, channel_map, from_onnx
from tgdsurgery.cli.models import load_model
from tgdsurgery.storage.checkpoints import read_state_dict

# Deprecations inside the zoo's own libraries.
pytestmark = pytest.mark.filterwarnings("default")

# Networks, and the size of their inputs: small ones of all kinds.
FILES = {
    **dict.fromkeys(("squeezenet1_0", "squeezenet1_1", "densenet121", "googlenet"), 32),
    **dict.fromkeys(
        ("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"), 32
    ),
    **dict.fromkeys(("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet0_5"), 32),
    **dict.fromkeys(("mnasnet0_75", "mnasnet1_0", "mnasnet1_3", "efficientnet_b0", "regnet_y_400mf"), 32),
    **dict.fromkeys(
        ("regnet_y_800mf", "regnet_x_400mf", "regnet_x_800mf", "resnet18", "lraspp_mobilenet_v3_large"), 32
    ),
}
FILES = {f"torchvision/{name}": size for name, size in FILES.items()} | {
    **{
        f"timm/{name}": 32
        for name in (
            *("resnet18", "skresnet18", "resnest14d", "dla34", "hrnet_w18_small", "ghostnet_100", "mixnet_s"),
            *("fastvit_t8", "convnext_atto", "convnextv2_atto", "efficientnet_b0", "ese_vovnet19b_dw"),
            *(
                "inception_next_atto",
                "mobilenetv1_100",
                "mobilenetv2_100",
                "mobilenetv3_large_100",
                "mnasnet_100",
            ),
            *(
                "mobilenetv4_conv_small",
                "lcnet_050",
                "tinynet_a",
                "semnasnet_075",
                "rexnet_100",
                "fbnetc_100",
            ),
            *(
                "spnasnet_100",
                "hardcorenas_a",
                "repghostnet_050",
                "mobileone_s0",
                "repvit_m0_9",
                "regnetx_002",
            ),
            *("regnety_002", "starnet_s1", "legacy_seresnet18", "dpn68", "efficientnet_es"),
        )
    },
    **{
        f"monai/{name}": 16
        for name in (
            *(
                "UNet-2d",
                "UNet-3d",
                "AttentionUnet-2d",
                "DynUNet-3d",
                "SegResNet-3d",
                "ResNet-3d",
                "HighResNet-2d",
            ),
            *("RegUNet-3d", "DynUNet-2d", "SegResNet-2d", "RegUNet-2d"),
        )
    },
    **{
        f"monai/{name}": 32
        for name in ("BasicUNet-2d", "BasicUNetPlusPlus-2d", "SegResNetDS-2d", "VNet-2d", "ResNet-2d")
    },
    **{f"smp/{name}-resnet18": 32 for name in ("Unet", "FPN", "Linknet", "DeepLabV3Plus", "DeepLabV3")},
    "timm/edgenext_xx_small": 64,
    "timm/ghostnetv2_100": 64,
}


def test_there_are_enough():
    assert len(FILES) >= 60
    assert FILES.keys() <= NETWORKS.keys()


@pytest.mark.parametrize("name", FILES)
def test_the_map_of_the_file_is_that_of_the_network(tmp_path, name):
    """With other weights in every layer: exporters keep equal tensors once, under one name."""
    net, image = NETWORKS[name].make(FILES[name])
    randomise(net, seed=0)
    path = tmp_path / "net.onnx"
    _export(net, image, path)
    read, own = channel_map(from_onnx(path)), channel_map(net, image)
    stored = read_state_dict(path)
    # Heads that run in training only are in no file.
    kept = [consumer for consumer in own.consumers if f"{consumer}.weight" in stored]
    assert set(read.consumers) == set(kept)
    assert len(kept) > 0.8 * len(own.consumers)
    for consumer in kept:
        assert read.producers(consumer) == own.producers(consumer), consumer


def _export(net: torch.nn.Module, image: torch.Tensor, path: Path) -> None:
    """Norms as they are, not folded into the convolutions before them."""
    kept = {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            torch.onnx.export(net, (image,), path, dynamo=False, opset_version=17, **kept)
        finally:
            logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "timm:lcnet_050", "monai:BasicUNet"])
def test_networks_by_name(name):
    assert channel_map(load_model(name)).consumers


def _installed(package: str, path: str) -> Path:
    """A file of a package; the test is left out where that is not installed."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"pip install --no-deps {package.replace('_', '-')}")
    return Path(found.submodule_search_locations[0]) / path


@pytest.mark.parametrize(
    ("package", "path", "consumers"),
    [
        ("rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", 54),
        ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx", 64),
        ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx", 47),
        ("basic_pitch", "saved_models/icassp_2022/nmp.onnx", 9),
        ("silero_vad", "data/silero_vad_16k_sequence.onnx", 8),
        ("silero_vad", "data/silero_vad_openvino_16k.onnx", 8),
    ],
)
def test_files_of_wheels(package, path, consumers):
    net = from_onnx(_installed(package, path))
    assert net.meta["largest_difference"] < 1e-5
    assert len(channel_map(net).consumers) == consumers


@pytest.mark.parametrize(
    "name", ["silero_vad", "silero_vad_half", "silero_vad_16k_op15", "silero_vad_op18_ifless"]
)
def test_branches_over_data_are_refused_by_name(name):
    path = _installed("silero_vad", f"data/{name}.onnx")
    with pytest.raises(UnsupportedOpError, match=r"the op If .*condition is not constant"):
        from_onnx(path)
    assert sum(tensor.ndim == 3 for tensor in read_state_dict(path).values()) >= 6  # its convolutions
