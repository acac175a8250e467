"""Networks: tensors in, tensors out."""

from .unet_lgcvd import LGCVDContextEncoder, LGCVDUNet2DModel, LGCVDUNet2DOutput
from .unet_mcvd import MCVDUNet2DModel, MCVDUNet2DOutput
from .unet_rvd import RVDContextEncoder, RVDUNet2DModel, RVDUNet2DOutput
from .unet_space_time import SpaceTimeUNetModel, SpaceTimeUNetOutput
from .weight_files import checks_weights


for network in (
    MCVDUNet2DModel,
    SpaceTimeUNetModel,
    LGCVDUNet2DModel,
    LGCVDContextEncoder,
    RVDUNet2DModel,
    RVDContextEncoder,
):
    checks_weights(network)

__all__ = [
    "LGCVDContextEncoder",
    "LGCVDUNet2DModel",
    "LGCVDUNet2DOutput",
    "MCVDUNet2DModel",
    "MCVDUNet2DOutput",
    "RVDContextEncoder",
    "RVDUNet2DModel",
    "RVDUNet2DOutput",
    "SpaceTimeUNetModel",
    "SpaceTimeUNetOutput",
]
