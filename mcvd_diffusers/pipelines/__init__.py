"""Network, noise scheduler and frame schedule make a video."""

from .pipeline_mcvd import MCVDPipeline, MCVDPipelineOutput


__all__ = ["MCVDPipeline", "MCVDPipelineOutput"]
