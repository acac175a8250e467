"""Networks: tensors in, tensors out."""

from .unet_mcvd import MCVDUNet2DModel, MCVDUNet2DOutput


__all__ = ["MCVDUNet2DModel", "MCVDUNet2DOutput"]
