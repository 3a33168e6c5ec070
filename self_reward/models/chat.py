"""The only place where text becomes token ids, so that training and sampling see the same prompt (bugs B7 to B10).

A conversation is one user turn and one assistant turn. It has a system prompt only if the chat template itself adds
one, in training and in sampling alike.
"""

from functools import lru_cache
from typing import NamedTuple

from self_reward import texts
from self_reward.errors import UserError
from self_reward.types import Tokenizer

_MARK = "zqxjv"  # a placeholder text, to see what a template puts around it


def choose_template(tokenizer: Tokenizer, chat_template: str = "auto") -> str:
    """The Jinja text to store as the tokenizer's chat template.

    `chat_template`: "auto" or "" (the tokenizer's own, otherwise the built-in "plain", which needs no new tokens), the
    name of a built-in template, or a template's text. Raises UserError if the template cannot render a user and an
    assistant turn, or if neither it nor the tokenizer has an end token.
    """
    if chat_template in ("", "auto"):
        template = _own_template(tokenizer) or texts.builtin("chat_template", "plain")
    elif "{" not in chat_template:
        template = texts.builtin("chat_template", chat_template)
    else:
        template = chat_template
    _form(tokenizer, template)
    return template


def _own_template(tokenizer: Tokenizer) -> str | None:
    own = tokenizer.chat_template
    return own.get("default") if isinstance(own, dict) else own


class _Form(NamedTuple):
    close: str  # what a template puts after an assistant's text, up to and including the end token; "" if it has none
    end: int  # id of the end token
    tail: int  # characters that the template puts after the assistant's text
    adds_bos: bool  # whether the tokenizer itself adds a BOS
    reserved: tuple[str, ...]  # texts that the tokenizer reads as one special token


def _render(tokenizer: Tokenizer, messages: list[dict[str, str]], template: str, generation: bool) -> str:
    return tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=generation, continue_final_message=False
    )


@lru_cache(maxsize=8)
def _form(tokenizer: Tokenizer, template: str) -> _Form:
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": _MARK}]
    try:
        text = _render(tokenizer, messages, template, False)
    except Exception as error:  # whatever Jinja or the template itself raises
        raise UserError(f"the chat template cannot render a user and an assistant turn: {error}") from error
    if "hello" not in text or text.count(_MARK) != 1:
        raise UserError(
            f"the chat template does not show each turn's content once: {text!r}; set another chat_template"
        )
    tail = text.partition(_MARK)[2]
    added = {str(token): token_id for token_id, token in tokenizer.added_tokens_decoder.items()}
    # the template's own end of turn: the first token in the tail, the longest of those that start there
    ends = [(tail.find(token), -len(token), token) for token in added if token and token in tail]
    if ends:
        at, _, token = min(ends)
        close, end = tail[: at + len(token)], added[token]
    elif tokenizer.eos_token_id is not None:
        close, end = "", tokenizer.eos_token_id
    else:
        raise UserError(
            "neither the chat template nor the tokenizer has an end token; a model cannot learn when to stop"
        )
    adds_bos = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    reserved = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return _Form(close, end, len(tail), adds_bos, tuple(token for token in reserved if len(token) > 1))


def _current(tokenizer: Tokenizer) -> tuple[str, _Form]:
    template = _own_template(tokenizer)
    if not template:
        raise UserError("the tokenizer has no chat template; store the result of chat.choose_template with it first")
    return template, _form(tokenizer, template)


def _harmless(text: str, form: _Form) -> str:
    """Break up a "</s>" inside a prompt or a response with a space: it is text, not the end of a turn."""
    for token in form.reserved:
        if token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def _ids(tokenizer: Tokenizer, text: str, form: _Form) -> list[int]:
    """Ids of a rendered text: with one BOS if the template or the tokenizer adds one, never two (bug B8)."""
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids
    start = 0
    while start < len(ids) and ids[start] == bos:
        start += 1
    return ids[start - 1 :] if start else [bos] * form.adds_bos + ids


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Ids of the user's turn and the generation prompt, which a model continues."""
    template, form = _current(tokenizer)
    message = {"role": "user", "content": _harmless(prompt, form)}
    return _ids(tokenizer, _render(tokenizer, [message], template, True), form)


def example_ids(tokenizer: Tokenizer, prompt: str, response: str) -> tuple[list[int], list[int]]:
    """(prompt ids, completion ids): prompt_ids(tokenizer, prompt), and the completion with exactly one end token.

    What a template puts after the end token is left out, since no model has to write it. If the ids of the whole text
    do not start with those of the prompt, the completion is tokenised separately, so that training starts from what
    sampling starts from.
    """
    template, form = _current(tokenizer)
    user = {"role": "user", "content": _harmless(prompt, form)}
    before = _render(tokenizer, [user], template, True)
    start = _ids(tokenizer, before, form)
    assistant = {"role": "assistant", "content": _harmless(_without_end(tokenizer, response, form), form)}
    whole = _render(tokenizer, [user, assistant], template, False)
    whole = whole[: len(whole) - form.tail]
    if whole.startswith(before):
        ids = _ids(tokenizer, whole + form.close, form)
        if ids[: len(start)] == start:
            return start, _with_end(ids[len(start) :], form)
        text = whole[len(before) :]
    else:
        text = assistant["content"]
    return start, _with_end(list(tokenizer(text + form.close, add_special_tokens=False)["input_ids"]), form)


def pair_ids(tokenizer: Tokenizer, prompt: str, chosen: str, rejected: str) -> tuple[list[int], list[int], list[int]]:
    """(prompt ids, chosen ids, rejected ids) as `example_ids` gives them."""
    start, chosen_ids = example_ids(tokenizer, prompt, chosen)
    return start, chosen_ids, example_ids(tokenizer, prompt, rejected)[1]


def _without_end(tokenizer: Tokenizer, response: str, form: _Form) -> str:
    """`response` without stored end tokens, since the template adds its own. Linear and without copies, for a response
    with a million of them."""
    ends = [end for end in (form.close.strip(), tokenizer.eos_token) if end]
    kept = at = len(response)
    while True:
        while at and response[at - 1].isspace():
            at -= 1
        end = next((end for end in ends if response.endswith(end, 0, at)), None)
        if end is None:
            return response[:kept]
        kept = at = at - len(end)


def _with_end(ids: list[int], form: _Form) -> list[int]:
    return ids if form.close else [*ids, form.end]


def stop_token_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids at which sampling stops: the template's end of an assistant turn and the tokenizer's EOS (bug B10)."""
    _, form = _current(tokenizer)
    return sorted({form.end} | ({tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()))
