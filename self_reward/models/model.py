"""A model folder with its tokenizer, as samplers and training take it."""

from dataclasses import dataclass
from pathlib import Path

from self_reward.errors import UserError
from self_reward.parameters.settings import Loading
from self_reward.types import Tokenizer


@dataclass(frozen=True)
class Model:
    """A plain Hugging Face folder (weights, config, tokenizer; adapters merged), and its loaded tokenizer."""

    folder: Path
    tokenizer: Tokenizer
    loading: Loading


def load(folder: Path, loading: Loading, chat_template: str = "auto") -> Model:
    """The model in `folder`; its weights are not read yet. The tokenizer gets a chat template (chat.choose_template)
    and a padding token. Raises UserError where no tokenizer can be loaded."""
    from transformers import AutoTokenizer

    from self_reward.models import chat

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=loading.trust_remote_code)
    except Exception as error:  # the tokenizers library raises bare ones
        raise UserError(
            f"no tokenizer can be loaded from the model's folder {folder}: {type(error).__name__}: {error}"
        ) from error
    tokenizer.chat_template = chat.choose_template(tokenizer, chat_template)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # only ever masked
    return Model(folder, tokenizer, loading)
