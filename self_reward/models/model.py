"""What samplers and training take: a model folder with its tokenizer, and a job that survives a kill."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from self_reward.errors import UserError
from self_reward.parameters.settings import Loading
from self_reward.types import Tokenizer

Progress: TypeAlias = Callable[[int, int, str], None]  # units done, units in all, a note such as the loss


def no_progress(done: int, total: int, what: str = "") -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Job:
    """`folder`: partial results and training checkpoints of this job alone, from which the next try resumes. `seed`
    seeds sampling or training. `shard` (i, n): this process does part i of n of the work."""

    folder: Path
    seed: int
    progress: Progress = no_progress
    shard: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class Model:
    """A plain Hugging Face folder (weights, config, tokenizer; adapters merged), and its loaded tokenizer."""

    folder: Path
    tokenizer: Tokenizer
    loading: Loading


def load(folder: Path, loading: Loading, chat_template: str = "auto") -> Model:
    """The model in `folder`; its weights are not read yet. The tokenizer gets a chat template (chat.choose_template)
    and a padding token. Raises UserError if the tokenizer cannot be loaded."""
    from transformers import AutoTokenizer

    from self_reward.models import chat

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=loading.trust_remote_code)
    except Exception as error:  # the tokenizers library raises bare ones
        raise UserError(
            f"the tokenizer of the model in {folder} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    tokenizer.chat_template = chat.choose_template(tokenizer, chat_template)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # only ever masked
    return Model(folder, tokenizer, loading)
