"""What the assistant generates, of many families of chat templates.

Each template in `templates/` writes what its family's own writes for these conversations, in words of ours: SmolLM2 (ChatML),
Qwen2.5, Qwen3, Qwen3-Thinking, Llama 2, Llama 3.1, Mistral 7B v0.3, Gemma, Phi-3, Zephyr, OLMo 2 (Tülu), DeepSeek-R1,
gpt-oss, SOLAR (no special token ends a turn), and a ChatML with {% generation %} tags.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from scalekit.data.encoders.chat_template import labels, render, texts
from scalekit.errors import DataError, RowError
from scalekit.objectives.counts import IGNORED

CHATML = ("<|endoftext|>", "<|im_end|>", ["<|im_start|>", "<|im_end|>"])
DEEPSEEK_END = "<\uff5cend\u2581of\u2581sentence\uff5c>"
# The token that opens a text, the one that ends it, and all that are special
FAMILIES: dict[str, tuple[str, str, list[str]]] = {
    "smollm2": ("<|im_start|>", "<|im_end|>", ["<|im_start|>", "<|im_end|>"]),
    "qwen2_5": CHATML,
    "qwen3": CHATML,
    "qwen3_thinking": CHATML,
    "llama2": ("<s>", "</s>", []),
    "llama3_1": ("<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"]),
    "mistral_v0_3": ("<s>", "</s>", ["[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"]),
    "gemma": ("<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"]),
    "phi3": ("<s>", "<|endoftext|>", ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]),
    "zephyr": ("<s>", "</s>", []),
    "olmo2": ("<|endoftext|>", "<|endoftext|>", []),
    "deepseek_r1": ("<\uff5cbegin\u2581of\u2581sentence\uff5c>", DEEPSEEK_END, []),
    "gpt_oss": (
        "<|startoftext|>",
        "<|return|>",
        ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>"],
    ),
    "solar": ("<s>", "</s>", []),
    "tagged": CHATML,
}


def make_tokenizer(template: str, bos: str = "<s>", eos: str = "</s>", special: tuple[str, ...] = ()) -> Any:
    """Byte pairs of a few words, and the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(
        ["user\n", "assistant\n\n", " the weather is sunny in Rome", "tool_call"] * 3, trainer
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    fast.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    fast.chat_template = template
    return fast


def family(name: str) -> Any:
    bos, eos, special = FAMILIES[name]
    template = (Path(__file__).parent / "templates" / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")
    return make_tokenizer(template, bos, eos, tuple(special))


TOKENIZERS = {name: family(name) for name in FAMILIES}


def learned(tokenizer: Any, messages: list[dict[str, Any]], tools: Any = None) -> list[str]:
    rendered = render(tokenizer, messages, tools)
    assert [rendered.text] == texts(tokenizer, [messages], tools)
    return [rendered.text[start:end] for start, end in rendered.spans]


def learned_tokens(tokenizer: Any, messages: list[dict[str, Any]], tools: Any = None) -> str:
    rendered = render(tokenizer, messages, tools)
    out = tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
    found = labels(out["input_ids"], out["offset_mapping"], rendered.spans, IGNORED)
    return str(tokenizer.decode([label for label in found if label != IGNORED]))


def say(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CONVERSATIONS = {
    "single": [say("user", "q1"), say("assistant", "a1")],
    "several": [say("user", "q1"), say("assistant", " a1 "), say("user", " q2 "), say("assistant", "a2")],
    "system": [
        say("system", "s"),
        say("user", "q1"),
        say("assistant", "a1"),
        say("user", "q2"),
        say("assistant", "a2"),
    ],
    "equal": [say("user", "yes"), say("assistant", "ok")] * 3,
    "empty": [say("user", "q1"), say("assistant", ""), say("user", "q2"), say("assistant", "")],
    "unanswered": [say("user", "q1"), say("assistant", "a1"), say("user", "q2")],
}
ENDS_WITH = {
    "smollm2": "<|im_end|>",
    "qwen2_5": "<|im_end|>",
    "zephyr": "</s>",
    "olmo2": "<|endoftext|>",
    "phi3": "<|end|>",
    "deepseek_r1": DEEPSEEK_END,
    "tagged": "<|im_end|>",
}
# These write the content as it is, and one token
LEARNED: dict[str, dict[str, list[str]]] = {
    name: {
        "single": [f"a1{end}"],
        "several": [f" a1 {end}", f"a2{end}"],
        "system": [f"a1{end}", f"a2{end}"],
        "equal": [f"ok{end}", f"ok{end}", f"ok{end}"],
        "empty": [end, end],
        "unanswered": [f"a1{end}"],
    }
    for name, end in ENDS_WITH.items()
} | {
    # reasoning is written of the last answer alone, even where there is none
    "qwen3": {
        "single": ["<think>\n\n</think>\n\na1<|im_end|>"],
        "several": [" a1 <|im_end|>", "<think>\n\n</think>\n\na2<|im_end|>"],
        "system": ["a1<|im_end|>", "<think>\n\n</think>\n\na2<|im_end|>"],
        "equal": ["ok<|im_end|>", "ok<|im_end|>", "<think>\n\n</think>\n\nok<|im_end|>"],
        "empty": ["<|im_end|>", "<think>\n\n</think>\n\n<|im_end|>"],
        "unanswered": ["a1<|im_end|>"],
    },
    # the same, but the generation prompt ends with "<think>\n"
    "qwen3_thinking": {
        "single": ["\n</think>\n\na1<|im_end|>"],
        "several": [" a1 <|im_end|>", "\n</think>\n\na2<|im_end|>"],
        "system": ["a1<|im_end|>", "\n</think>\n\na2<|im_end|>"],
        "equal": ["ok<|im_end|>", "ok<|im_end|>", "\n</think>\n\nok<|im_end|>"],
        "empty": ["<|im_end|>", "\n</think>\n\n<|im_end|>"],
        "unanswered": ["a1<|im_end|>"],
    },
    # a space before, a space after
    "llama2": {
        "single": [" a1 </s>"],
        "several": [" a1 </s>", " a2 </s>"],
        "system": [" a1 </s>", " a2 </s>"],
        "equal": [" ok </s>", " ok </s>", " ok </s>"],
        "empty": ["  </s>", "  </s>"],
        "unanswered": [" a1 </s>"],
    },
    "llama3_1": {
        "single": ["a1<|eot_id|>"],
        "several": ["a1<|eot_id|>", "a2<|eot_id|>"],
        "system": ["a1<|eot_id|>", "a2<|eot_id|>"],
        "equal": ["ok<|eot_id|>", "ok<|eot_id|>", "ok<|eot_id|>"],
        "empty": ["<|eot_id|>", "<|eot_id|>"],
        "unanswered": ["a1<|eot_id|>"],
    },
    "mistral_v0_3": {
        "single": [" a1</s>"],
        "several": [" a1</s>", " a2</s>"],
        "system": [" a1</s>", " a2</s>"],
        "equal": [" ok</s>", " ok</s>", " ok</s>"],
        "empty": [" </s>", " </s>"],
        "unanswered": [" a1</s>"],
    },
    "gemma": {
        "single": ["a1<end_of_turn>"],
        "several": ["a1<end_of_turn>", "a2<end_of_turn>"],
        "equal": ["ok<end_of_turn>", "ok<end_of_turn>", "ok<end_of_turn>"],
        "empty": ["<end_of_turn>", "<end_of_turn>"],
        "unanswered": ["a1<end_of_turn>"],
    },
    "gpt_oss": {
        "single": ["<|channel|>final<|message|>a1<|return|>"],
        "several": ["<|channel|>final<|message|> a1 <|end|>", "<|channel|>final<|message|>a2<|return|>"],
        "system": ["<|channel|>final<|message|>a1<|end|>", "<|channel|>final<|message|>a2<|return|>"],
        "equal": [
            "<|channel|>final<|message|>ok<|end|>",
            "<|channel|>final<|message|>ok<|end|>",
            "<|channel|>final<|message|>ok<|return|>",
        ],
        "empty": ["<|channel|>final<|message|><|end|>", "<|channel|>final<|message|><|return|>"],
        "unanswered": ["<|channel|>final<|message|>a1<|end|>"],
    },
    "solar": {
        "single": ["a1\n\n"],
        "several": ["a1\n\n", "a2\n\n"],
        "system": ["a1\n\n", "a2\n\n"],
        "equal": ["ok\n\n", "ok\n\n", "ok\n\n"],
        "empty": ["\n\n", "\n\n"],
        "unanswered": ["a1\n\n"],
    },
}


@pytest.mark.parametrize("name", FAMILIES)
def test_turns_are_learned_from_the_prompt_to_the_token_that_ends_them(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    found = {case: learned(tokenizer, CONVERSATIONS[case]) for case in LEARNED[name]}
    assert found == LEARNED[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_that_start_within_a_turn_carry_loss(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    expected = {case: "".join(turns) for case, turns in LEARNED[name].items()}
    if name == "solar":  # the prompt's last line break and the first of the turn are one token, which starts too early
        expected["empty"] = "\n\n"
    assert {case: learned_tokens(tokenizer, CONVERSATIONS[case]) for case in expected} == expected


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def call(city: str) -> dict[str, Any]:
    return {"type": "function", "id": "abcdefghi", "function": {"name": "weather", "arguments": {"city": city}}}


ASKED = [
    say("user", "Rome?"),
    say("assistant", None, tool_calls=[call("Rome")]),
    say("tool", "sunny", tool_call_id="abcdefghi"),
    say("assistant", "It is sunny."),
    say("user", "Oslo?"),
]
CALLED = [*ASKED, say("assistant", "", tool_calls=[call("Oslo")])]
CALLS = {
    "qwen2_5": [
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>',
        "It is sunny.<|im_end|>",
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>',
    ],
    "qwen3": [
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>',
        "It is sunny.<|im_end|>",
        '<think>\n\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>',
    ],
    "llama3_1": [
        '{"name": "weather", "parameters": {"city": "Rome"}}<|eot_id|>',
        "It is sunny.<|eot_id|>",
        '{"name": "weather", "parameters": {"city": "Oslo"}}<|eot_id|>',
    ],
    "mistral_v0_3": [
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}, "id": "abcdefghi"}]</s>',
        " It is sunny.</s>",
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo"}, "id": "abcdefghi"}]</s>',
    ],
    "gpt_oss": [
        ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Rome"}<|call|>',
        "<|channel|>final<|message|>It is sunny.<|end|>",
        ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Oslo"}<|call|>',
    ],
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_of_tools_are_learned_and_their_results_are_not(name: str) -> None:
    assert learned(family(name), CALLED, TOOLS) == CALLS[name]
    assert learned_tokens(family(name), CALLED, TOOLS) == "".join(CALLS[name])
    assert learned(family(name), ASKED, TOOLS) == CALLS[name][:2]


def test_several_calls_and_words_before_them_are_one_turn() -> None:
    messages = [
        say("user", "Rome and Oslo?"),
        say("assistant", "Let me see.", tool_calls=[call("Rome"), call("Oslo")]),
        say("tool", "sunny"),
        say("tool", "snow"),
        say("assistant", "Sunny and snow."),
    ]
    assert learned(family("qwen2_5"), messages, TOOLS) == [
        'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>',
        "Sunny and snow.<|im_end|>",
    ]


def test_reasoning_that_the_template_strips_from_earlier_turns() -> None:
    inline = [
        say("user", "q1"),
        say("assistant", "<think>\nt1\n</think>\n\na1"),
        say("user", "q2"),
        say("assistant", "<think>\nt2\n</think>\n\na2"),
    ]
    fields = [
        say("user", "q1"),
        say("assistant", "a1", reasoning_content="t1"),
        say("user", "q2"),
        say("assistant", "a2", reasoning_content="t2"),
    ]
    last = "<think>\nt2\n</think>\n\na2<|im_end|>"
    assert learned(family("qwen3"), inline) == ["a1<|im_end|>", last]
    assert learned(family("qwen3"), fields) == ["a1<|im_end|>", last]
    assert learned(family("qwen3_thinking"), fields) == ["a1<|im_end|>", "t2\n</think>\n\na2<|im_end|>"]
    assert learned(family("deepseek_r1"), inline) == [f"\n\na1{DEEPSEEK_END}", f"\n\na2{DEEPSEEK_END}"]
    assert learned(family("gpt_oss"), fields) == [
        "<|channel|>final<|message|>a1<|end|>",
        "<|channel|>analysis<|message|>t2<|end|><|start|>assistant<|channel|>final<|message|>a2<|return|>",
    ]


def test_what_a_prompt_gives_is_not_learned_where_an_answer_begins_with_it() -> None:
    messages = [say("user", "q1"), say("assistant", "<think>\nt1"), say("user", "q2"), say("assistant", "a2")]
    tokenizer = family("qwen3_thinking")
    assert learned(tokenizer, messages) == ["t1<|im_end|>", "\n</think>\n\na2<|im_end|>"]
    first = [say("user", "q0"), say("assistant", "a0")]
    assert learned(tokenizer, first + messages)[:2] == ["a0<|im_end|>", "t1<|im_end|>"]


def test_reasoning_between_calls_of_tools() -> None:
    messages = [
        say("user", "Rome?"),
        say("assistant", "", reasoning_content="t1", tool_calls=[call("Rome")]),
        say("tool", "sunny"),
        say("assistant", "It is sunny.", reasoning_content="t2"),
    ]
    assert learned(family("qwen3"), messages, TOOLS) == [
        "<think>\nt1\n</think>\n\n"
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>',
        "<think>\nt2\n</think>\n\nIt is sunny.<|im_end|>",
    ]


def test_system_prompts_and_tools_that_the_template_moves() -> None:
    tokenizer = family("mistral_v0_3")
    messages = [say("system", "s"), *CONVERSATIONS["unanswered"]]
    rendered = render(tokenizer, messages, TOOLS)
    assert rendered.text.startswith("<s>[INST] q1[/INST] a1</s>[AVAILABLE_TOOLS] [{")
    assert rendered.text.endswith("[/AVAILABLE_TOOLS][INST] s\n\nq2[/INST]")
    assert [rendered.text[start:end] for start, end in rendered.spans] == [" a1</s>"]


@pytest.mark.parametrize("name", ["smollm2", "qwen2_5", "llama3_1", "zephyr"])
def test_a_conversation_that_the_assistant_opens(name: str) -> None:
    messages = [say("assistant", "Hello!"), *CONVERSATIONS["single"]]
    end = ENDS_WITH.get(name, "<|eot_id|>")
    assert learned(family(name), messages) == [f"Hello!{end}", f"a1{end}"]


def test_an_assistant_that_speaks_twice() -> None:
    messages = [say("user", "q1"), say("assistant", "a1"), say("assistant", "a2"), say("user", "q2")]
    assert learned(family("smollm2"), messages) == ["a1<|im_end|>", "a2<|im_end|>"]


def test_special_tokens_within_what_is_said() -> None:
    messages = [
        say("user", "What does <|im_end|>\n<|im_start|>assistant\n mean?"),
        say("assistant", "<|im_end|> ends <|im_start|>user\n turns."),
        say("user", "<|im_end|>"),
        say("assistant", "<|im_end|>"),
    ]
    assert learned(family("smollm2"), messages) == [
        "<|im_end|> ends <|im_start|>user\n turns.<|im_end|>",
        "<|im_end|><|im_end|>",
    ]


def test_questions_that_the_template_asks_about() -> None:
    """A mark before <tool_response> would make a question of what is none, so questions must do without."""
    messages = [
        say("user", "q1"),
        say("assistant", "", reasoning_content="t", tool_calls=[call("Rome")]),
        say("user", "<tool_response>sunny</tool_response>"),
        say("assistant", "a1", reasoning_content="t"),
        say("user", "q2"),
        say("assistant", "", reasoning_content="t", tool_calls=[call("Rome")]),
        say("user", "<tool_response>sunny</tool_response>"),
        say("assistant", "a2", reasoning_content="t"),
    ]
    called = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>'
    thought = "<think>\nt\n</think>\n\n"
    assert learned(family("qwen3"), messages) == [called, "a1<|im_end|>", thought + called, thought + "a2<|im_end|>"]


def test_answers_that_the_template_asks_about() -> None:
    template = (
        "{% for m in messages %}<{{ m.role }}>"
        "{{ '<think></think>' if m.role == 'assistant' and not m.content.startswith('<think>') }}{{ m.content }}</s>"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    messages = [
        *[say("user", "q1"), say("assistant", "<think>t1</think>a1")],
        *[say("user", "q2"), say("assistant", "a2")],
    ]
    assert learned(make_tokenizer(template), messages) == ["<think>t1</think>a1</s>", "<think></think>a2</s>"]


def test_questions_that_the_template_compares() -> None:
    """Mistral's writes the tools before every question that equals the last."""
    turns = [(question, answer) for question, answer in (("yes", "a1"), ("no", "a2"), ("yes", "a3"))]
    messages = [say(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)]
    tokenizer = family("mistral_v0_3")
    assert render(tokenizer, messages, TOOLS).text.count("[AVAILABLE_TOOLS]") == 2
    assert learned(tokenizer, messages, TOOLS) == [" a1</s>", " a2</s>", " a3</s>"]


def test_a_prompt_that_is_another_after_another_role() -> None:
    template = (
        "{% for m in messages %}{{ '<a>' if m.role == 'assistant' }}{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt and messages[-1].role == 'user' %}<a>{% endif %}"
    )
    messages = [say("user", "q1"), say("assistant", "a1"), say("tool", "r1"), say("assistant", "a2")]
    assert learned(make_tokenizer(template), messages) == ["a1</s>", "<a>a2</s>"]


def test_a_name_that_the_template_writes_twice() -> None:
    template = (
        "{% for m in messages %}<{{ m.role }}>{% if m.tool_calls %}{% set f = m.tool_calls[0].function %}"
        "to={{ f.name }}<msg>{{ f.name }}({{ f.arguments.city }}){% else %}{{ m.content }}{% endif %}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert learned(make_tokenizer(template, special=("<msg>",)), CALLED) == [
        "to=weather<msg>weather(Rome)</s>",
        "It is sunny.</s>",
        "to=weather<msg>weather(Oslo)</s>",
    ]


def test_a_token_that_opens_the_next_turn_is_not_learned() -> None:
    template = (
        "<s>{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
        "{% else %}{{ m.content }}</s><s>{% endif %}{% endfor %}"
    )
    assert learned(make_tokenizer(template), CONVERSATIONS["several"]) == [" a1 </s>", "a2</s>"]


def test_content_in_parts_where_the_template_takes_it() -> None:
    template = (
        "{% for m in messages %}<{{ m.role }}>"
        "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}"
        "</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "1 "}]
    messages = [say("user", [{"type": "text", "text": "q1"}]), say("assistant", parts)]
    assert learned(make_tokenizer(template), messages) == ["a1 </s>"]
    with pytest.raises(RowError, match="as Python prints a list: join the parts"):
        render(family("zephyr"), messages)


def test_the_tags_of_a_template_are_taken_as_transformers_takes_them() -> None:
    template = (
        "{% for m in messages %}<{{ m.role }}>\n"
        "{% if m.role == 'assistant' %}\n{%- generation -%}\n {{ m.content }}</s>\n{%- endgeneration %}\n"
        "{% else %}{{ m.content }}</s>{% endif %}\n{% endfor %}"
    )
    tokenizer = make_tokenizer(template)
    messages = CONVERSATIONS["several"]
    rendered = render(tokenizer, messages)
    theirs = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True, tokenizer_kwargs={"return_offsets_mapping": True}
    )
    found = labels(theirs["input_ids"], theirs["offset_mapping"], rendered.spans, IGNORED)
    assert [int(label != IGNORED) for label in found] == theirs["assistant_masks"]
    assert learned(tokenizer, messages) == [" a1 </s>", "a2</s>"]


def test_a_comment_on_tags_is_none() -> None:
    tokenizer = family("zephyr")
    tokenizer.chat_template = "{#- without {% generation %} tags -#}" + tokenizer.chat_template
    assert learned(tokenizer, CONVERSATIONS["single"]) == ["a1</s>"]


class Counting:
    """A tokenizer that counts renderings."""

    def __init__(self, tokenizer: Any) -> None:
        self.renderings = 0
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def apply_chat_template(self, *args: Any, **options: Any) -> Any:
        self.renderings += 1
        return self._tokenizer.apply_chat_template(*args, **options)


LONG = [say(role, f" {role} {i} ") for i in range(50) for role in ("user", "assistant")]


@pytest.mark.parametrize(
    ("name", "messages", "renderings"),
    [
        ("llama3_1", CONVERSATIONS["single"], 3),
        ("llama3_1", CONVERSATIONS["several"], 4),
        ("llama3_1", CONVERSATIONS["empty"], 4),
        ("llama3_1", LONG, 4),
        ("qwen2_5", CALLED[-2:], 5),  # two tell that the template takes arguments as objects
        ("tagged", LONG, 2),
    ],
)
def test_renderings_are_few_however_long_the_conversation(name: str, messages: Any, renderings: int) -> None:
    tokenizer = Counting(family(name))
    render(tokenizer, messages)
    assert tokenizer.renderings == renderings
    texts(tokenizer, [messages])
    assert tokenizer.renderings == renderings + (3 if messages == CALLED[-2:] else 1)


ROLES = st.lists(st.sampled_from(["u{}", "u{} ", " u{}\n<|im_end|>", "same"]), min_size=1, max_size=4)
ANSWERS = st.sampled_from(["a{}", " a{}\n", "", "<|im_end|>a{}", "<think>\na{}\n</think>\n\na{}", "a{}</s>\n\na{}"])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["smollm2", "qwen3", "llama2", "mistral_v0_3", "phi3", "olmo2", "gpt_oss"]), ROLES, st.data())
def test_all_that_the_assistant_says_is_learned_and_nothing_that_others_say(
    name: str, questions: list[str], data: st.DataObject
) -> None:
    messages = []
    for i, question in enumerate(questions):
        answer = data.draw(ANSWERS)
        messages += [say("user", question.format(i)), say("assistant", answer.format(i, i))]
    rendered = render(TOKENIZERS[name], messages)
    inside = "".join(rendered.text[start:end] for start, end in rendered.spans)
    ends, starts = [0, *(b for _, b in rendered.spans)], [*(a for a, _ in rendered.spans), len(rendered.text)]
    outside = "".join(rendered.text[end:start] for end, start in zip(ends, starts, strict=True))
    assert len(rendered.spans) == len(questions)
    for i in range(len(questions)):
        assert f"u{i}" not in inside
        assert f"a{i}" not in outside
    assert "same" not in inside


def test_a_refusal_of_the_template_is_the_rows_fault() -> None:
    with pytest.raises(RowError, match="refuses the conversation: System role not supported"):
        render(family("gemma"), CONVERSATIONS["system"])
    with pytest.raises(RowError, match="Conversation roles must alternate"):
        texts(family("llama2"), [[say("user", "q1"), say("user", "q2")]])
    with pytest.raises(RowError, match="cannot render the conversation"):
        render(family("phi3"), [say("user", ["q1"])])
    with pytest.raises(RowError, match="without messages"):
        render(family("phi3"), [])


def test_tags_that_the_template_trims_again() -> None:
    template = (
        "{% for m in messages %}{% set turn %}{% generation %}{{ m.content }}{% endgeneration %}{% endset %}"
        "{{ turn | trim }}</s>{% endfor %}"
    )
    assert learned(make_tokenizer(template), CONVERSATIONS["single"]) == ["q1", "a1"]
    with pytest.raises(DataError, match="changes or nests what it tags"):
        render(make_tokenizer(template), CONVERSATIONS["several"])


def test_a_tokenizer_without_a_template() -> None:
    tokenizer = family("phi3")
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template to use: set its `chat_template`"):
        render(tokenizer, CONVERSATIONS["single"])


def test_noncharacters_are_no_text() -> None:
    with pytest.raises(RowError, match=r"U\+FDD0"):
        render(family("smollm2"), [say("user", "a\ufdd0b"), say("assistant", "a1")])


TURNS = "{% for m in messages %}<{{ m.role }}>"
WAYS_OUT = r"Use loss_on='all', or a chat template with {% generation %} tags"
UNSETTLED = {
    "message 1 does not follow what the template gives as a generation prompt": (
        TURNS + "{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant><think>\n{% endif %}",
        CONVERSATIONS["single"],
    ),
    "message 0 does not follow what the template gives as a generation prompt": (
        TURNS + "{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}",
        [say("assistant", "a0"), *CONVERSATIONS["single"]],
    ),
    # an empty turn cannot be marked, and the last turn ends with another token than those before
    "message 1 has special tokens, and none of them can be told to end it: '<chan><msg>'": (
        TURNS + "{% if m.role == 'assistant' %}<chan><msg>{{ ' ' if m.content }}{{ m.content }}"
        "{{ '</s>' if loop.last else '<end>' }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}",
        CONVERSATIONS["empty"],
    ),
    "message 1 calls a tool, which the template does not write": (
        TURNS
        + "{% if m.tool_calls %}{{ m.tool_calls[0].function.arguments | tojson }}{% else %}{{ m.content }}{% endif %}"
        "</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
        CALLED,
    ),
    "message 1 says something that the template does not write there": (
        TURNS
        + "{{ m.content if m.role == 'user' }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
        CONVERSATIONS["single"],
    ),
    # what a turn says after a call stands behind the tool's result
    "message 1 is written in parts, with other messages between them": (
        "{% for m in messages if m.role != 'tool' %}<{{ m.role }}>"
        "{% if m.tool_calls %}{{ m.tool_calls[0].function.name }}"
        "({{ m.tool_calls[0].function.arguments.city }})|{{ messages[loop.index].content }}|{% endif %}"
        "{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
        [*ASKED[:1], say("assistant", "Let me see.", tool_calls=[call("Rome")]), *ASKED[2:4]],
    ),
    # the token that ends a call is not special, but one within it is
    "message 1 has special tokens, and none of them can be told to end it": (
        TURNS + "{% if m.tool_calls %}{{ m.tool_calls[0].function.name }}</s>"
        "{{ m.tool_calls[0].function.arguments.city }}<stop>{% else %}{{ m.content }}<stop>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
        CALLED[:2],
    ),
    "message 1 ends with '.' where the conversation does, and with ';<user>' where it goes on": (
        TURNS + "{{ m.content }}{{ ('.' if loop.last else ';') if m.role == 'assistant' }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}",
        CONVERSATIONS["unanswered"],
    ),
}


@pytest.mark.parametrize("why", UNSETTLED)
def test_what_cannot_be_told_is_refused_with_the_ways_out(why: str) -> None:
    template, messages = UNSETTLED[why]
    with pytest.raises(DataError) as caught:
        render(make_tokenizer(template, special=("<chan>", "<msg>", "<end>")), messages)
    assert why in str(caught.value)
    assert WAYS_OUT in str(caught.value)


def test_labels_of_tokens_that_start_within_spans() -> None:
    offsets = [(0, 0), (0, 2), (2, 5), (5, 5), (5, 6), (6, 9), (9, 12), (12, 13), (0, 0)]
    ids = list(range(10, 19))
    assert labels(ids, offsets, [(3, 6), (9, 12)], -1) == [-1, -1, -1, -1, 14, -1, 16, -1, -1]
    assert labels(ids, offsets, [(0, 2), (2, 5)], -1) == [-1, 11, 12, -1, -1, -1, -1, -1, -1]
    assert labels(ids, offsets, [], -1) == [-1] * 9
    assert labels([], [], [(0, 3)], -1) == []
    assert labels(ids, offsets, [(2, 2), (5, 6)], -1) == [-1, -1, -1, -1, 14, -1, -1, -1, -1]


def test_labels_of_several_tokens_of_one_character() -> None:
    assert labels([1, 2, 3, 4], [(0, 1), (1, 2), (1, 2), (2, 3)], [(1, 2)], -1) == [-1, 2, 3, -1]


def test_labels_of_a_row_cut_within_a_turn() -> None:
    tokenizer = family("smollm2")
    rendered = render(tokenizer, [say("user", "Rome?"), say("assistant", "the weather is sunny in Rome")])
    out = tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
    whole = labels(out["input_ids"], out["offset_mapping"], rendered.spans, IGNORED)
    first = next(i for i, label in enumerate(whole) if label != IGNORED)
    cut = first + 3
    assert whole[:cut] == labels(out["input_ids"][:cut], out["offset_mapping"][:cut], rendered.spans, IGNORED)
    kept = tokenizer.decode([label for label in whole[:cut] if label != IGNORED])
    assert "the weather is sunny in Rome<|im_end|>".startswith(kept)
    assert len(kept) > 0


def test_labels_take_time_in_proportion() -> None:
    """With a search through all spans for each token, this would take an hour."""
    offsets = [(i, i + 1) for i in range(400_000)]
    spans = [(i, i + 2) for i in range(0, 400_000, 4)]
    found = labels(range(400_000), offsets, spans, IGNORED)
    assert [label for label in found if label != IGNORED] == [i for i in range(400_000) if i % 4 < 2]
