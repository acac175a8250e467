"""Checkpoints of the original MCVD code -> pipeline folders. The files are read as untrusted."""

from .convert import Conversion, convert_checkpoint
from .untrusted import CheckpointError


__all__ = ["CheckpointError", "Conversion", "convert_checkpoint"]
