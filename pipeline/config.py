"""The settings of one run, as a user writes them in a TOML file or as flags. Those of the decoding
are `lrd.DecodingConfig`.
"""

from __future__ import annotations

from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lrd.config import Compile, DecodingConfig, PassRows, PromptFormat, Truncation

MAX_SLOTS = 65_536
MAX_REPLICAS = 100_000
MAX_SHARDS = 100_000
MAX_SAMPLES = 10_000
"""Larger numbers are slips of the hand, which would fill memory before anything is decoded."""

MOST_CPUS = 8.0
"""Most CPUs of a replica where the user does not set a number."""

Columns = Literal["minimal", "standard", "full"]
"""Which result columns are written; `pipeline.rows.Result` names the level of each."""

RowSetting = Literal["gen_length", "temperature", "seed", "system_prompt"]
"""Settings that rows may bring along, each in an input column of its name."""

FORMS = ("template", "template_column", "json_schema", "infill")
"""Settings that give answers their form; at most one may be set."""
FIELDS = {"schema": "json_schema"}
"""Names of settings, as users write them, where the field has another: pydantic has a `schema`."""


def shown(name: str) -> str:
    """A field's name as users write it."""
    return next((flag for flag, field in FIELDS.items() if field == name), name)


class RunConfig(BaseModel):
    """One run: prompts in, results out.

    Raises pydantic's ValidationError (a ValueError) for unknown or impossible settings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    input: str = Field(description="Parquet file or folder of prompt shards: a path or a URI")
    output: str = Field(description="folder of the result dataset; the same command continues it")
    prompt_column: str = Field("prompt", description="input column of the prompts: text, or chats")
    prompt_format: PromptFormat = Field(
        "auto",
        description="chat: by the chat template; raw: the text as it is; auto: chat where the "
        "model has a template",
    )
    system_prompt: str | None = Field(
        None, description="system message of every prompt that has none of its own"
    )
    allow_special_tokens: bool = Field(
        False, description="<|im_end|> and the like in prompts are special tokens, not text"
    )
    row_settings: tuple[RowSetting, ...] = Field(
        (),
        description="settings that input columns of these names give row by row, separated by "
        "commas; null: the run's",
    )
    template: str | None = Field(
        None,
        description="file with the answers' fixed text and holes: [[12]] is 12 positions, [[*]] "
        "what gen_length leaves",
    )
    template_column: str | None = Field(
        None, description="input column with each row's own template"
    )
    json_schema: str | None = Field(
        None,
        description="file with a JSON Schema: every answer is JSON of its form, in output_json too",
    )
    infill: bool = Field(
        False,
        description="fill the holes of a raw prompt, or of a chat's last assistant turn",
    )
    template_filler: str | None = Field(
        None, description="a hole that is exactly this text, as in <none>, reads as empty"
    )
    stop: tuple[str, ...] = Field(
        (), description="output_text ends before this text; may be given several times"
    )
    truncation: Truncation = Field(
        "fail", description="prompt too long for the model: fail the row, or keep its last tokens"
    )
    num_samples: int = Field(
        1,
        ge=1,
        le=MAX_SAMPLES,
        description="rows for each prompt, each drawn with a seed of its own; above 1 needs a "
        "temperature above 0",
    )
    columns: Columns = Field(
        "full",
        description="result columns. minimal: answer, counts, errors; standard: all but traces "
        "and lists of tokens; full: all",
    )
    model: str = Field(
        "tiny", description="checkpoint folder or its URI, hub id, tiny or tiny_sheets"
    )
    revision: str | None = Field(None, description="commit, tag or branch of a hub id")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: cuda if the cluster has GPUs, else cpu"
    )
    dtype: Literal["auto", "float32", "bfloat16", "int8", "fp8", "int8_w8a8"] = Field(
        "auto",
        description="auto: bfloat16 on cuda, float32 on cpu; fp8 (H100) and int8_w8a8 (A100): the "
        "layers' products in eight bits; int8: their weights alone, which is slower",
    )
    replicas: int | None = Field(
        None,
        ge=1,
        le=MAX_REPLICAS,
        description="model replicas [as many as there are GPUs for; 1 on cpu]",
    )
    cpus_per_replica: float | None = Field(
        None, gt=0, description="CPU cores per replica [an equal share, 8 at most]"
    )
    gpus_per_replica: float = Field(
        1.0, gt=0, description="GPUs per replica, on cuda: 1, or a fraction of one"
    )
    accelerator_type: str | None = Field(
        None, description="only GPUs of this type, by Ray's name: A100, H100 [any]"
    )
    autoscale: bool = Field(
        False,
        description="replicas that do not fit on the cluster yet wait for the machines that an "
        "autoscaler adds",
    )
    compile: Compile = Field(
        "none",
        description="none: on CUDA element-wise work is fused; eager: nothing is; compile: all of "
        "a layer but attention is compiled; graphs: also replayed as CUDA graphs",
    )
    slots: int = Field(
        16,
        ge=1,
        le=MAX_SLOTS,
        description="canvases that a replica decodes at a time, at most; fewer if memory is short",
    )
    pass_rows: PassRows = Field(
        "busy",
        description="rows that a forward pass computes: the busy slots, or all of them always, so "
        "that a GPU's kernels and their rounding do not depend on how many are busy",
    )
    lookahead_shards: int = Field(
        4, ge=1, le=MAX_SHARDS, description="input shards in memory at a time"
    )
    flush_seconds: float = Field(
        5.0, gt=0, description="seconds between two writes of finished rows"
    )
    max_attempts: int = Field(
        3,
        ge=1,
        description="quarantine a row after this many replica deaths while it was the only row in "
        "flight",
    )
    max_restarts: int = Field(
        20,
        ge=0,
        description="stop the run after more than this many replica deaths without a finished row",
    )
    hang_seconds: float = Field(
        60.0,
        gt=0,
        description="replace a replica without a heartbeat for this long and for 20 times its "
        "longest pass",
    )
    start_seconds: float = Field(
        1800.0, gt=0, description="replace a replica that has not loaded its model after this long"
    )
    address: str | None = Field(
        None,
        description="Ray cluster, HOST:PORT; `auto` inside one [$RAY_ADDRESS, else a local one]",
    )
    decoding: DecodingConfig = Field(default_factory=lambda: DecodingConfig.preset("fast"))

    @model_validator(mode="before")
    @classmethod
    def _take_flag_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {FIELDS.get(name, name): value for name, value in values.items()}

    @field_validator("input", "output", "model")
    @classmethod
    def _check_named(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is empty; name a folder, a file or a URI")
        return value

    @field_validator("row_settings", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        given = [value] if isinstance(value, str) else value
        if not all(isinstance(one, str) for one in given):
            return value
        return [name.strip() for one in given for name in one.split(",")]

    @field_validator("row_settings")
    @classmethod
    def _put_in_order(cls, value: tuple[RowSetting, ...]) -> tuple[RowSetting, ...]:
        return tuple(name for name in get_args(RowSetting) if name in value)

    @field_validator("stop")
    @classmethod
    def _check_stops(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("a stop text is empty and would end every answer at once; drop it")
        return value

    @model_validator(mode="after")
    def _check_samples(self) -> Self:
        drawn = self.decoding.temperature > 0 or "temperature" in self.row_settings
        if self.num_samples > 1 and not drawn:
            raise ValueError(
                f"num_samples {self.num_samples} at temperature 0 would give every prompt the same "
                "answer so many times; set temperature above 0, or drop num_samples"
            )
        return self

    @model_validator(mode="after")
    def _check_row_settings(self) -> Self:
        if "temperature" in self.row_settings and self.decoding.credit_alpha > 0:
            raise ValueError(
                "credit_alpha credits the most probable token, and row_settings gives each row its "
                "temperature; keep one of them"
            )
        if "gen_length" not in self.row_settings:
            return self
        if self.decoding.steps is not None:
            raise ValueError(
                "steps are shared out over gen_length, which row_settings gives row by row; drop "
                "steps for another commit rule, or gen_length from row_settings"
            )
        if self.decoding.grows:
            raise ValueError(
                "gen_length auto (or max_gen_length) finds a canvas for each row, and row_settings "
                "gives each row its gen_length; keep one of them"
            )
        return self

    @property
    def form(self) -> str | None:
        """The setting that gives answers their form; None where none does."""
        given = [name for name in FORMS if getattr(self, name) not in (None, False)]
        return given[0] if given else None

    @model_validator(mode="after")
    def _check_forms(self) -> Self:
        given = [shown(name) for name in FORMS if getattr(self, name) not in (None, False)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} each give answers their form; keep one")
        if self.template_filler is not None and not given:
            raise ValueError("template_filler is for holes; drop it, or set a template")
        if self.template_filler is not None and not self.template_filler.strip():
            raise ValueError("template_filler is empty, as a hole that reads so is anyway; drop it")
        if given and self.decoding.grows:
            raise ValueError(
                f"gen_length auto (or max_gen_length) finds a canvas for each row, and {given[0]} "
                "gives it; set gen_length to a number"
            )
        if self.json_schema is not None and self.stop:
            raise ValueError("stop would cut the JSON that schema asks for; drop one of them")
        if self.json_schema is not None and self.decoding.logits_eos_inf:
            raise ValueError("logits_eos_inf leaves out EOS, which ends schema's holes; drop it")
        return self

    @model_validator(mode="after")
    def _check_placement(self) -> Self:
        if self.gpus_per_replica > 1:
            raise ValueError(
                f"gpus_per_replica {self.gpus_per_replica:g}: a replica computes on one GPU and "
                "the others would idle; give 1 or a fraction of one, and more --replicas"
            )
        if self.accelerator_type is not None and self.device == "cpu":
            raise ValueError("accelerator_type names GPUs, and device is cpu; drop one of them")
        if self.autoscale and self.replicas is None:
            raise ValueError("autoscale needs replicas: the number that machines may be added for")
        return self
