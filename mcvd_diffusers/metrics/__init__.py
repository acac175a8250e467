"""Frame quality, and the baselines that every number stands beside."""

from .baselines import blend_linearly, repeat_last_frame
from .frame_quality import psnr_of_mse, video_mse


__all__ = ["blend_linearly", "psnr_of_mse", "repeat_last_frame", "video_mse"]
