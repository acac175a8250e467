"""Networks: tensors in, tensors out."""

from .unet_mcvd import MCVDUNet2DModel, MCVDUNet2DOutput
from .weight_files import checks_weights


checks_weights(MCVDUNet2DModel)

__all__ = ["MCVDUNet2DModel", "MCVDUNet2DOutput"]
