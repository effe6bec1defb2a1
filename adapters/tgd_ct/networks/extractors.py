"""Features of images, for the perceptual loss: VGG-19's from a file of weights, or those of an autoencoder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tgd_ct.networks.segmenters import HU_WINDOW
from tgd_kit.errors import printable, reason
from tgd_kit.training.weights import check_finite
from tgdsurgery import CheckpointError

# Output channels of VGG-19's convolutions, in blocks with a pooling layer between them.
VGG_BLOCKS = ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 512, 512), (512, 512, 512, 512))
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours


class Autoencoder(nn.Module):
    """Two halvings and back; its encoder is the extractor where there are no weights of VGG.

    Args:
        width: output channels of the first convolution.

    Shapes: (B, 1, H, W) in HU to features (B, 4 width, H / 4, W / 4); `decode` leads back to HU.

    Reference: for the idea of an extractor trained on CT itself, Li et al., "SACNN: Self-Attention Convolutional
    Neural Network for Low-Dose CT Denoising With Self-Supervised Perceptual Loss Network", IEEE TMI 2020.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, 2, padding=1),
            nn.ReLU(),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 1, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Features."""
        features: Tensor = self.encoder(_windowed(images))
        return features

    def decode(self, features: Tensor) -> Tensor:
        """The image behind features, in HU."""
        low, high = HU_WINDOW
        image: Tensor = self.decoder(features) * (high - low) + low
        return image


def new_autoencoder(seed: int, width: int = 16) -> Autoencoder:
    """An untrained one whose weights follow from `seed`; torch's own random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Autoencoder(width)


class VGG(nn.Module):
    """The convolutions of VGG-19 up to the last, of the window of HU as a grey image.

    Shapes: (B, 1, H, W) in HU to (B, 512, H / 16, W / 16).

    References: Simonyan and Zisserman, ICLR 2015; as a loss for CT, Yang et al., "Low-Dose CT Image Denoising Using a
    Generative Adversarial Network With Wasserstein Distance and Perceptual Loss", IEEE TMI 2018, section II.C.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for block in VGG_BLOCKS:
            for width in block:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[:-1])  # numbered as torchvision numbers them
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Features."""
        features: Tensor = self.features((_windowed(images) - self.mean) / self.deviation)
        return features


def load_vgg(path: Path) -> VGG:
    """VGG-19 with the weights of a file that torchvision would load, such as vgg19-dcbb9e9d.pth.

    Raises:
        CheckpointError: the file is missing, damaged, or holds another network.
    """
    network = VGG()
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(
            {name: value for name, value in found.items() if name.startswith("features.")}
        )
    except Exception as error:  # damage leads to any exception in torch.load
        raise CheckpointError(
            f"{printable(path)} does not hold the weights of VGG-19 ({reason(error)}).",
            "Pass the file of torchvision's vgg19.",
        ) from error
    check_finite(network, printable(path))
    return network.eval()


def _windowed(images: Tensor) -> Tensor:
    low, high = HU_WINDOW
    return (images.clamp(low, high) - low) / (high - low)
