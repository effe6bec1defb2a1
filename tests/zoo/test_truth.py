"""Law 2 on networks people use: the map is what interventions find, channel by channel."""

from __future__ import annotations

import pytest
from torch import nn

from tests.oracles.batches import BatchedInterventions
from tests.strategies import Case
from tests.strategies.case import randomise
from tests.zoo.networks import FORWARD_ONLY, NETWORKS
from tgdsurgery import channel_map

# Deprecations inside the zoo's own libraries.
pytestmark = pytest.mark.filterwarnings("default")

# Small networks of many kinds, and the size of their inputs.
TRUTH = {
    # torchvision: fire modules, channel shuffle, squeeze and excite, branches, dense blocks
    "torchvision/squeezenet1_1": 32,
    "torchvision/shufflenet_v2_x0_5": 32,
    "torchvision/mobilenet_v3_small": 16,
    "torchvision/mnasnet0_5": 16,
    "torchvision/googlenet": 32,
    "torchvision/densenet121": 32,
    "torchvision/regnet_y_400mf": 16,
    # timm: selective kernels, split attention, aggregation, several resolutions, ghosts, mixed kernels
    "timm/resnet18": 16,
    "timm/skresnet18": 16,
    "timm/resnest14d": 16,
    "timm/dla34": 32,
    "timm/hrnet_w18_small": 32,
    "timm/selecsls42b": 16,
    "timm/ghostnet_100": 16,
    "timm/mixnet_s": 16,
    "timm/fastvit_t8": 32,
    "timm/nf_regnet_b0": 16,
    "timm/convnext_atto": 32,
    "timm/efficientnet_b0": 16,
    "timm/ese_vovnet19b_dw": 32,
    "timm/edgenext_xx_small": 64,
    "timm/inception_next_atto": 32,
    # MONAI and segmentation_models_pytorch: skips, attention gates, deep supervision, padding, 2-d and 3-d
    "monai/UNet-2d": 16,
    "monai/UNet-3d": 16,
    "monai/BasicUNetPlusPlus-2d": 32,
    "monai/AttentionUnet-2d": 16,
    "monai/DynUNet-3d": 16,
    "monai/SegResNet-3d": 16,
    "monai/SegResNetDS-2d": 32,
    "monai/ResNet-3d": 16,
    "monai/HighResNet-2d": 16,
    "monai/VNet-2d": 32,
    "monai/RegUNet-3d": 16,
    "smp/PSPNet-resnet18": 64,
    "smp/DeepLabV3Plus-resnet18": 32,
    "smp/FPN-resnet18": 32,
    "smp/Linknet-resnet18": 32,
    # written to in part after it was read
    "timm/fasternet_t0, by slices": 32,
    "PLKSR": 16,
}

# Heads that run in training only, where samples of a batch see each other.
TRAINING_ONLY = {"torchvision/googlenet": ("aux1.", "aux2.")}


def _alive(net: nn.Module) -> nn.Module:
    """Positive scales: rectifier, negative scale and rectifier in a row would shut a channel off for good."""
    for parameter in net.parameters():
        if parameter.ndim == 1:
            parameter.data.abs_()
    return net


@pytest.mark.parametrize("name", TRUTH)
def test_the_map_is_what_interventions_find(name):
    net, image = (NETWORKS | FORWARD_ONLY)[name].make(TRUTH[name])
    case = Case(_alive(randomise(net, seed=0)), image)
    found = channel_map(case.model, case.inputs)
    there = [
        consumer for consumer in found.consumers if not consumer.startswith(TRAINING_ONLY.get(name, "-"))
    ]
    experiment = BatchedInterventions(case, {consumer: found.producers(consumer) for consumer in there})
    assert experiment.differences() == []
    assert experiment.checked == sum(found.layers[consumer].channels for consumer in there)
