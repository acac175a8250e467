"""Checkpoints of the original MCVD code, of RaMViD, FDM, VDM's port and LGC-VD -> pipeline folders. The files are read as untrusted."""

from .conversion import SAMPLERS, Conversion
from .convert import convert_checkpoint
from .untrusted import CheckpointError


__all__ = ["SAMPLERS", "CheckpointError", "Conversion", "convert_checkpoint"]
