"""Latent Refinement Decoding for diffusion language models, without Ray or files.

model = lrd.load_model("tiny"); lrd.decode(model, ["…"], lrd.DecodingConfig.preset("fast"))
"""

from lrd.config import DecodingConfig
from lrd.engine import Engine, Request, Sample, decode
from lrd.models.checkpoint import load_model

__all__ = ["DecodingConfig", "Engine", "Request", "Sample", "decode", "load_model"]
