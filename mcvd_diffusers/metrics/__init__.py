"""Numbers of videos: frame quality, distances between features, scores of ensembles, their intervals; and baselines."""

from .baselines import blend_linearly, repeat_first_frame, repeat_last_frame
from .ensembles import crps, energy_score, rank_histogram, spread_and_error, spread_skill_ratio
from .feature_distances import FeatureMoments, frechet_distance, polynomial_mmd
from .feature_networks import (
    FeatureNetwork,
    I3DFeatures,
    TransNetFeatures,
    VideoMAEFeatures,
    VJEPA2Features,
    load_feature_network,
)
from .frame_quality import frame_mse, frame_ssim, psnr_of_mse, quantise, video_mse
from .intervals import Interval, distance_interval, mean_interval, normal_interval, paired_difference_interval
from .perceptual import LPIPS


__all__ = [
    "LPIPS",
    "FeatureMoments",
    "FeatureNetwork",
    "I3DFeatures",
    "Interval",
    "TransNetFeatures",
    "VJEPA2Features",
    "VideoMAEFeatures",
    "blend_linearly",
    "crps",
    "distance_interval",
    "energy_score",
    "frame_mse",
    "frame_ssim",
    "frechet_distance",
    "load_feature_network",
    "mean_interval",
    "normal_interval",
    "paired_difference_interval",
    "polynomial_mmd",
    "psnr_of_mse",
    "quantise",
    "rank_histogram",
    "repeat_first_frame",
    "repeat_last_frame",
    "spread_and_error",
    "spread_skill_ratio",
    "video_mse",
]
