"""Settings of one run: what a user writes in a TOML file or as flags.

Knows nothing of the command line. Decoding settings are `lrd.DecodingConfig`'s own.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lrd import DecodingConfig
from lrd.models.compiled import Compile
from lrd.prompts import PromptFormat

Truncation = Literal["fail", "keep_last"]


class RunConfig(BaseModel):
    """One run: prompts in, results out.

    Raises pydantic's ValidationError (a ValueError) for unknown or impossible settings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: str = Field(description="Parquet file or folder of prompt shards; any filesystem")
    output: str = Field(description="folder of the result dataset; a rerun continues it")
    prompt_column: str = Field("prompt", description="input column that holds the prompt text")
    prompt_format: PromptFormat = Field(
        "auto", description="chat template, raw text, or chat where the model has a template"
    )
    system_prompt: str | None = Field(None, description="system message before every prompt")
    allow_special_tokens: bool = Field(
        False, description="<|im_end|> and the like in prompts are special tokens, not text"
    )
    truncation: Truncation = Field(
        "fail", description="prompts too long for the model: fail the row, or keep the last tokens"
    )
    model: str = Field("tiny", description="checkpoint folder or its URI, hub id, or tiny")
    revision: str | None = Field(None, description="commit, tag or branch of a hub id")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: cuda where the cluster has GPUs"
    )
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto", description="auto: bfloat16 on cuda, float32 on cpu"
    )
    replicas: int | None = Field(
        None, ge=1, description="model replicas [as many as there are GPUs for; 1 on cpu]"
    )
    cpus_per_replica: float | None = Field(
        None, gt=0, description="CPU cores a replica [an equal share, 8 at most]"
    )
    gpus_per_replica: float = Field(
        1.0, gt=0, description="GPUs a replica, on cuda: a whole number, or a share of one"
    )
    accelerator_type: str | None = Field(
        None, description="GPUs of this type alone, in Ray's words: A100, H100 [any]"
    )
    autoscale: bool = Field(
        False,
        description="replicas for which there is no room yet wait for machines, which an "
        "autoscaler adds for them",
    )
    compile: Compile = Field(
        "none", description="the forward pass by torch.compile, or as CUDA graphs as well"
    )
    slots: int = Field(
        16, ge=1, description="canvases that a replica decodes together, as far as memory allows"
    )
    lookahead_shards: int = Field(4, ge=1, description="input shards held in memory at a time")
    flush_seconds: float = Field(5.0, gt=0, description="finished rows reach storage this often")
    max_attempts: int = Field(
        3, ge=1, description="replicas that may die with a row alone in them until it is set aside"
    )
    max_restarts: int = Field(
        20, ge=0, description="replica deaths in a row, without a finished row, that end the run"
    )
    hang_seconds: float = Field(
        60.0,
        gt=0,
        description="a replica silent for this long, and for 20 of its longest passes, is replaced",
    )
    start_seconds: float = Field(
        1800.0, gt=0, description="a replica that has not loaded its model by then is replaced"
    )
    address: str | None = Field(
        None, description="Ray cluster; `auto` inside one [RAY_ADDRESS, else a local one]"
    )
    decoding: DecodingConfig = Field(default_factory=lambda: DecodingConfig.preset("fast"))

    @model_validator(mode="after")
    def _check_placement(self) -> Self:
        if self.gpus_per_replica > 1 and self.gpus_per_replica % 1:
            raise ValueError(
                f"gpus_per_replica {self.gpus_per_replica:g}: above 1 only whole GPUs can be had"
            )
        if self.accelerator_type is not None and self.device == "cpu":
            raise ValueError("accelerator_type names GPUs; drop it, or device cpu")
        if self.autoscale and self.replicas is None:
            raise ValueError("autoscale needs replicas: as many as machines may be added for")
        return self
