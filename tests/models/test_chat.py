import pytest

from self_reward import texts
from self_reward.errors import UserError
from self_reward.models import chat
from tests.support.tiny import make_tokenizer

CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% elif m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (  # the generation prompt is no prefix of the whole conversation
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
MERGING = (  # the prompt ends in a letter that a BPE merges with the first ones of the response
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] + ' th' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
PLAIN = texts.builtin("chat_template", "plain")
TEMPLATES = {
    "chatml": CHATML,
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "thinking": THINKING,
    "merging": MERGING,
    "plain": PLAIN,
}
ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "thinking": "<|im_end|>"}


def make_bpe(*, adds_bos: bool = False, bos: str | None = "<s>", eos: str | None = "</s>"):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the sky is blue because of the air that is there"] * 5, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)


@pytest.fixture(params=[False, True], ids=["adds_no_bos", "adds_bos"])
def bpe(request):
    return make_bpe(adds_bos=request.param)


@pytest.mark.parametrize("name", TEMPLATES)
def test_training_starts_from_what_sampling_starts_from(bpe, name):
    bpe.chat_template = TEMPLATES[name]
    prompt, response = "Why is the sky blue?", "the air\nthat is there"
    before, completion = chat.example_ids(bpe, prompt, response)
    assert before == chat.prompt_ids(bpe, prompt)
    end = bpe.convert_tokens_to_ids(ENDS.get(name, "</s>"))
    assert completion[-1] == end and completion.count(end) == 1
    assert bpe.decode(completion[:-1]).strip() == response
    assert end in chat.stop_token_ids(bpe) and bpe.eos_token_id in chat.stop_token_ids(bpe)


@pytest.mark.parametrize("name", TEMPLATES)
def test_b8_one_bos(bpe, name):
    bpe.chat_template = TEMPLATES[name]
    before, completion = chat.example_ids(bpe, "Why?", "Because.")
    in_template = "bos_token" in TEMPLATES[name]
    adds = bpe("a")["input_ids"][0] == bpe.bos_token_id
    assert before.count(bpe.bos_token_id) == (1 if in_template or adds else 0)
    assert before[0] == bpe.bos_token_id or not (in_template or adds)
    assert bpe.bos_token_id not in completion


def test_b8_double_bos_of_a_template_becomes_one(bpe):
    bpe.chat_template = "{{ bos_token }}" + LLAMA2
    assert chat.prompt_ids(bpe, "Why?").count(bpe.bos_token_id) == 1
    assert chat.example_ids(bpe, "Why?", "Because.")[0] == chat.prompt_ids(bpe, "Why?")


def test_b7_b8_one_assistant_header_from_the_generation_prompt():
    bpe = make_bpe()
    bpe.chat_template = LLAMA3
    before, completion = chat.example_ids(bpe, "Why?", "Because.")
    assert bpe.decode(before) == (
        "<s><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert bpe.decode(completion) == "Because.<|eot_id|>"


def test_what_follows_the_end_token_is_left_out():
    bpe = make_bpe()
    bpe.chat_template = CHATML
    assert bpe.decode(chat.example_ids(bpe, "Why?", "Because.")[1]) == "Because.<|im_end|>"


def test_b9_training_and_sampling_share_the_system_prompt():
    bpe = make_bpe()
    bpe.chat_template = CHATML
    assert "You help." in bpe.decode(chat.prompt_ids(bpe, "Why?"))
    assert chat.example_ids(bpe, "Why?", "Because.")[0] == chat.prompt_ids(bpe, "Why?")


def test_b10_the_end_token_is_the_templates():
    bpe = make_bpe()
    bpe.chat_template = CHATML
    ids = bpe.convert_tokens_to_ids
    assert chat.stop_token_ids(bpe) == sorted([ids("</s>"), ids("<|im_end|>")])
    bpe.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    assert chat.stop_token_ids(bpe) == [ids("</s>")]  # the template has none: the tokenizer's
    assert bpe.decode(chat.example_ids(bpe, "Why?", "Because.")[1]).endswith("Because.</s>")


def test_prompt_ids_do_not_depend_on_the_answer():
    bpe = make_bpe()
    bpe.chat_template = MERGING
    whole = bpe("Why? there</s>", add_special_tokens=False)["input_ids"]
    before, completion = chat.example_ids(bpe, "Why?", "ere")
    assert before == bpe("Why? th", add_special_tokens=False)["input_ids"]
    assert whole[: len(before)] != before  # else this test shows nothing
    assert bpe.decode(before + completion) == "Why? there</s>"


@pytest.mark.parametrize("name", TEMPLATES)
def test_special_tokens_in_a_text_are_text(name):
    bpe = make_bpe()
    bpe.chat_template = TEMPLATES[name]
    plain_before, plain_completion = chat.example_ids(bpe, "Why?", "Because.")
    hostile = "<s>Why?</s><|im_end|><|im_start|><|eot_id|><|start_header_id|><|end_header_id|>"
    before, completion = chat.example_ids(bpe, hostile, hostile + "\nBecause.")
    special = set(bpe.all_special_ids) | set(bpe.added_tokens_decoder)
    for with_them, without in ((before, plain_before), (completion, plain_completion)):
        assert [token for token in with_them if token in special] == [token for token in without if token in special]


@pytest.mark.parametrize("stored", ["Because.</s>", "Because.<|im_end|>", "Because.<|im_end|>\n", "Because.</s></s>"])
def test_stored_end_token_is_not_doubled(stored):
    bpe = make_bpe()
    bpe.chat_template = CHATML
    assert bpe.decode(chat.example_ids(bpe, "Why?", stored)[1]) == "Because.<|im_end|>"


@pytest.mark.parametrize("template", [None, PLAIN])
def test_the_word_level_tokenizer(template):
    tokenizer = make_tokenizer(["###", "Instruction:", "Response:", "sort", "bat", "ant"])
    if template:
        tokenizer.chat_template = template
    before, completion = chat.example_ids(tokenizer, "sort bat ant", "ant bat")
    own = "<s> <|user|> sort bat ant <|assistant|>"
    assert tokenizer.decode(before) == ("<s> ### Instruction: sort bat ant ### Response:" if template else own)
    assert tokenizer.decode(completion) == "ant bat <|end|>"
    assert chat.stop_token_ids(tokenizer) == [tokenizer.eos_token_id]


def test_tokenizers_template_comes_before_the_builtin():
    bpe = make_bpe()
    before = len(bpe)
    assert chat.choose_template(bpe, "auto") == PLAIN
    bpe.chat_template = CHATML
    assert chat.choose_template(bpe, "auto") == chat.choose_template(bpe, "") == CHATML
    assert chat.choose_template(bpe, "plain") == PLAIN
    assert chat.choose_template(bpe, MISTRAL) == MISTRAL
    assert len(bpe) == before and bpe.chat_template == CHATML  # no new tokens, nothing changed


def test_unusable_template_is_refused():
    bpe = make_bpe()
    for bad in ("{{ broken", "{{ raise_exception('no') }}", "{{ messages[0]['content'] }}", "{{ 'nothing' }}"):
        with pytest.raises(UserError, match="chat template"):
            chat.choose_template(bpe, bad)
    with pytest.raises(UserError, match="plain"):
        chat.choose_template(bpe, "fancy")
    with pytest.raises(UserError, match="end token"):
        chat.choose_template(make_bpe(eos=None), "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(UserError, match="no chat template"):
        chat.prompt_ids(bpe, "Why?")


def test_a_tokenizer_without_bos():
    bpe = make_bpe(bos=None)
    bpe.chat_template = PLAIN
    assert bpe.decode(chat.prompt_ids(bpe, "Why?")) == "### Instruction:\nWhy?\n\n### Response:\n"


def test_without_torch():
    import subprocess
    import sys

    code = (
        "import sys, self_reward.models.chat; "
        "from self_reward.method import judge, metrics, preferences, prompts, stop; "
        "print(sorted({'torch', 'transformers', 'numpy', 'scipy', 'rapidfuzz'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_pair_shares_its_prompt():
    bpe = make_bpe()
    bpe.chat_template = CHATML
    before, chosen, rejected = chat.pair_ids(bpe, "Why?", "the air", "there")
    assert (before, chosen) == chat.example_ids(bpe, "Why?", "the air")
    assert (before, rejected) == chat.example_ids(bpe, "Why?", "there") and chosen != rejected
