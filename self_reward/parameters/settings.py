"""Groups of settings: what a library function takes as one thing. Each value and each bound is declared here, once.

A field of a group is a parameter whose flat name is the group's prefix + the field's name (stages.py): `temperature`
of `Judging` is the parameter `judge_temperature`. The docstring under a field is its help, its row in
docs/parameters.md and its description in the Argo UI.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


def neutral(default: Any, **bounds: Any) -> Any:
    """A field that does not affect what a stage writes (paths, timeouts, hardware), so it is not part of its key."""
    return Field(default, json_schema_extra={"affects_output": False}, **bounds)


def added(default: Any, **bounds: Any) -> Any:
    """A field that did not exist when data repositories in use were made. It is part of the key only if it differs from
    its default, so that work finished before is still recognised."""
    return Field(default, json_schema_extra={"in_key": "unless default"}, **bounds)


class Fields(BaseModel):
    """How all groups of fields are read."""

    # defer_build: only the stage that runs is built, which saves a fifth of a second at every start
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, defer_build=True, allow_inf_nan=False
    )


class Settings(Fields):
    """Parameters that a library function takes whole."""


class Loading(Settings):
    """How weights are loaded."""

    trust_remote_code: bool = False
    """Run Python code that comes with a model. Only for models whose code you have read."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of loaded weights; auto: bfloat16 on a GPU, float32 on CPU."""


class Engine(Settings):
    """What generates text."""

    sampler: Literal["auto", "vllm", "transformers"] = "auto"
    """Engine that generates text; auto: vllm if it is installed and the machine has a GPU, else transformers."""
    sampler_batch_size: int = Field(64, ge=1)
    """Prompts per chunk of the transformers sampler. Rounding depends on the batch, so it can affect samples."""
    max_model_len: int | None = Field(None, ge=16)
    """Longest sequence (prompt and answer, in tokens); default: the model's."""
    generate_gpus: int = neutral(1, ge=0)
    """GPUs per generating process (vllm's tensor_parallel_size); in a cluster what its pod requests, 0: none."""
    gpu_memory_utilization: float = neutral(0.9, gt=0, le=1)
    """Share of GPU memory that vllm takes."""


class Sampling(Settings):
    """How tokens are drawn. Temperature 0 is greedy; `max_tokens` bounds one answer."""

    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    max_tokens: int = Field(ge=1)


class PromptSampling(Sampling):
    """How new prompts are sampled."""

    temperature: float = Field(0.6, ge=0)
    """Sampling temperature of new prompts."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus sampling of new prompts."""
    max_tokens: int = Field(256, ge=1)
    """Longest answer to a request for new prompts, in tokens."""


class Answers(Settings):
    """How responses are sampled, but for their temperature, which differs between training data and evaluation."""

    top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus sampling of responses."""
    max_tokens: int = Field(1024, ge=1)
    """Longest response, in tokens."""

    def at(self, temperature: float) -> Sampling:
        """These settings at `temperature`."""
        return Sampling(temperature=temperature, **self.model_dump())


class Judging(Sampling):
    """How judgements are sampled."""

    temperature: float = Field(0.7, ge=0)
    """Sampling temperature of the judge."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus sampling of the judge."""
    max_tokens: int = Field(512, ge=1)
    """Longest judgement, in tokens."""
    forced_score: bool = False
    """After each justification ask for the score alone and take its expected value over the digits' probabilities,
    so that no judgement is unreadable (G-Eval, arXiv 2303.16634)."""


class Scale(Settings):
    """The scores that the rubric asks for."""

    min: int = Field(0, ge=0, le=9)
    """Lowest score on the rubric's scale."""
    max: int = Field(5, ge=1, le=9)
    """Highest score on the rubric's scale."""


class Writing(Settings):
    """How many new prompts are written, from how many examples."""

    num_prompts: int = Field(5000, ge=1)
    """New prompts per iteration."""
    prompt_seed_shots: int = Field(6, ge=1)
    """Examples from the seed data in each request for a new prompt."""
    prompt_generated_shots: int = Field(2, ge=0)
    """Examples from prompts already generated in each request for a new prompt."""
    prompt_max_requests: float = Field(8.0, ge=1)
    """Most requests for new prompts, as a multiple of num_prompts; after that the stage continues with what it has."""
    min_prompt_yield: float = neutral(0.02, ge=0, le=1)
    """The stage ends with an error when a smaller share of what the model writes is usable."""


class PromptRules(Settings):
    """Which new prompts are accepted."""

    similarity: float = Field(0.7, gt=0, le=1)
    """A new prompt whose ROUGE-L with an existing one reaches this is rejected; 1: only equal texts are."""
    min_words: int = Field(3, ge=1)
    """Shortest new prompt, in words."""
    max_words: int = Field(150, ge=1)
    """Longest new prompt, in words."""
    keywords: list[str] = Field(
        default=[
            "image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot",
            "go to", "video", "audio", "music", "flowchart", "diagram",
        ]
    )  # fmt: skip
    """New prompts with one of these words are rejected: a text model cannot answer them (JSON list; the words of
    Self-Instruct, arXiv 2212.10560)."""
    pattern: str | None = None
    """Regular expression that a new prompt must contain; ^ and $ make it match as a whole."""


class PairRules(Settings):
    """Which responses make a preference pair."""

    length_rho: float = Field(0.0, ge=0, lt=0.5)
    """Length control (Meta-Rewarding, arXiv 2407.19594): among responses within this share of the score range of the
    best, the shortest is chosen; of the worst, the longest is rejected. 0: plain best against worst."""
    min_margin: float = Field(0.0, ge=0)
    """A pair's scores must differ by more than this."""
    tie_break: Literal["none", "variance"] = "none"
    """Which of several equally scored responses is used: the first, or the one whose votes agree most."""
    drop_truncated: bool = False
    """Leave out responses that were cut off by response_max_tokens."""
    drop_identical: bool = True
    """Responses with the same text count as one, with the mean of their scores."""
    max_pairs: int = Field(1, ge=1)
    """Most pairs per prompt: best against worst, second best against second worst, and so on."""
    shuffle_preferences: bool = False
    """Control experiment: pair by random scores instead of the judge's. A run that still improves did not learn from
    the judge."""


class Lora(Settings):
    """The shape of adapters."""

    rank: int = Field(16, ge=1)
    """Rank of LoRA adapters."""
    alpha: int = Field(32, ge=1)
    """Scale of LoRA adapters: their output is multiplied by lora_alpha / lora_rank."""
    target_modules: str = "all-linear"
    """Modules that get an adapter: all-linear, or names joined by commas."""


class Hardware(Settings):
    """Hardware and checkpointing for training."""

    checkpoint_steps: int = neutral(200, ge=1)
    """Optimizer steps between checkpoints, from which an interrupted training resumes."""
    train_gpus: int = neutral(1, ge=0)
    """GPUs of one training on one machine (accelerate, FSDP above 1; on a machine without GPUs that many CPU
    processes); in a cluster what its pod requests, 0: none."""
    gradient_checkpointing: bool = neutral(True)
    """Recompute activations in the backward pass: less memory, about a third more time. Has no effect on CPU."""

    @property
    def processes(self) -> int:
        """Training processes: one per GPU, and one on a machine without."""
        return max(1, self.train_gpus)


class Training(Settings):
    """Settings that SFT and DPO share."""

    finetune: Literal["lora", "full"] = "lora"
    """Train an adapter or all weights."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the training data."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps; overrides the number of epochs."""
    learning_rate: float = Field(gt=0, le=1)
    min_learning_rate: float = Field(ge=0, le=1)
    warmup_ratio: float = Field(0.0, ge=0, lt=1)
    """Share of steps with rising learning rate."""
    batch_size: int = Field(16, ge=1)
    """Examples (SFT) or pairs (DPO) per optimizer step."""
    micro_batch_size: int = neutral(4, ge=1)
    max_length: int = Field(2048, ge=8)
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout in training: of the adapters (lora) or of attention (full)."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of AdamW."""
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    """Second moment decay of AdamW."""

    def micro_batch(self, processes: int) -> int:
        """Examples per forward pass on each of `processes` devices: `micro_batch_size`, or the device's whole share of
        the batch if that is smaller."""
        return max(1, min(self.micro_batch_size, self.batch_size // processes))


class SftTraining(Training):
    """Supervised fine-tuning."""

    learning_rate: float = Field(1e-4, gt=0, le=1)
    """Highest learning rate. The default is for lora; full fine-tuning of a large model wants 5.5e-6 (the paper)."""
    min_learning_rate: float = Field(1e-5, ge=0, le=1)
    """Learning rate at the end of the cosine."""
    micro_batch_size: int = neutral(4, ge=1)
    """Examples per device in one forward pass; gradients are accumulated up to sft_batch_size."""
    max_length: int = Field(2048, ge=8)
    """Longest example in tokens; longer ones are left out and counted."""


class DpoTraining(Training):
    """Direct preference optimisation."""

    learning_rate: float = Field(5e-6, gt=0, le=1)
    """Highest learning rate. The default is for lora; full fine-tuning of a large model wants 1e-6 (the paper)."""
    min_learning_rate: float = Field(5e-7, ge=0, le=1)
    """Learning rate at the end of the cosine."""
    micro_batch_size: int = neutral(2, ge=1)
    """Pairs per device in one forward pass; gradients are accumulated up to dpo_batch_size."""
    max_length: int = Field(2048, ge=8)
    """Longest prompt and response in tokens; pairs with a longer one are left out and counted."""
    adam_beta2: float = added(0.999, gt=0, lt=1)
    """Second moment decay of AdamW."""


class PreferenceLoss(Settings):
    """DPO's loss."""

    dpo_loss: Literal["sigmoid", "sigmoid_norm"] = "sigmoid"
    """DPO's loss, plain or with log-probabilities divided by length (then beta is about ten times larger)."""
    beta: float = Field(0.1, gt=0)
    """Strength of the pull towards the reference, which is the policy that DPO starts from."""
    nll_weight: float = Field(0.0, ge=0)
    """Weight of the negative log-likelihood of the chosen response, added to the loss (Iterative RPO, arXiv
    2404.19733)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Assumed share of wrongly labelled pairs (CREAM, arXiv 2410.12735); only with dpo_loss sigmoid."""
    precompute_reference: bool = neutral(False)
    """Compute the reference's log-probabilities once, before training: full DPO then needs one model in memory."""
