"""Calls of tools, with their arguments as objects and as JSON text; tools as JSON text; what results hold."""

import json
from typing import Any

import pytest

from scalekit.data.encoders.causal import Causal
from scalekit.data.encoders.chat_template import render, texts
from scalekit.data.encoders.truncation import Limit
from scalekit.errors import RowError
from tests.data.test_chat_template import TOOLS, call, family, make_tokenizer, say

TEXT = (  # as DeepSeek's, which puts the text of arguments behind a name
    "{{ tools | tojson if tools }}{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name + '(' + c.function.arguments + ')' }}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PRINTED = TEXT.replace(
    "{{ c.function.name + '(' + c.function.arguments + ')' }}", "{{ c.function.name }}({{ c.function.arguments }})"
)
ITEMS = TEXT.replace(
    "{{ c.function.name + '(' + c.function.arguments + ')' }}",
    "{{ c.function.name }}{% for k, v in c.function.arguments.items() %}<{{ k }}>{{ v }}{% endfor %}",
)
NAMES = TEXT.replace(" + '(' + c.function.arguments + ')'", "")
CITY = '{"city": "Rome"}'


def written(arguments: Any) -> list[dict[str, Any]]:
    """A conversation with two calls at once."""
    calls = [{**call("Rome"), "function": {"name": "weather", "arguments": arguments}}, call("Oslo")]
    return [
        say("user", "Rome?"),
        say("assistant", "", tool_calls=calls),
        say("tool", "sunny"),
        say("tool", "snow"),
        say("assistant", "Sunny."),
    ]


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3"])
@pytest.mark.parametrize("arguments", [CITY, {"city": "Rome"}, '{"city":"Rome"}'])
def test_text_is_parsed_for_templates_that_take_objects(name: str, arguments: Any) -> None:
    found = render(family(name), written(arguments), TOOLS)
    assert found == render(family(name), written({"city": "Rome"}), TOOLS)
    assert found.text.count('"arguments": {"city": "Rome"}}') == 1
    assert texts(family(name), [written(arguments)], TOOLS) == [found.text]


def test_text_is_parsed_for_templates_that_go_through_arguments() -> None:
    assert "weather<city>Romeweather<city>Oslo" in render(make_tokenizer(ITEMS), written(CITY)).text


@pytest.mark.parametrize("template", [TEXT, PRINTED])
@pytest.mark.parametrize("arguments", ['{"city":"Rome"}', '{"city": "R\\u00f6m"}', "no JSON"])
def test_text_stays_as_it_is_for_templates_that_take_text(template: str, arguments: str) -> None:
    assert (
        f'weather({arguments})weather({{"city": "Oslo"}})' in render(make_tokenizer(template), written(arguments)).text
    )


@pytest.mark.parametrize("template", [TEXT, PRINTED])
def test_objects_become_text_for_templates_that_take_text(template: str) -> None:
    assert 'weather({"city": "Röm"})' in render(make_tokenizer(template), written({"city": "Röm"})).text


def test_what_is_null_in_text_stays_null() -> None:
    (text,) = texts(family("qwen2_5"), [written('{"city": null, "days": [1.5, true]}')])
    assert '"arguments": {"city": null, "days": [1.5, true]}' in text


def test_calls_without_arguments_need_none() -> None:
    messages = [say("user", "a"), say("assistant", "", tool_calls=[{"function": {"name": "now"}}])]
    assert "now</s>" in render(make_tokenizer(NAMES), messages).text


def test_calls_as_text() -> None:
    messages = written({"city": "Rome"})
    as_text = [
        {**turn, "tool_calls": json.dumps(turn["tool_calls"])} if "tool_calls" in turn else turn for turn in messages
    ]
    assert render(family("qwen2_5"), as_text) == render(family("qwen2_5"), messages)


@pytest.mark.parametrize(
    "tools",
    [
        json.dumps(TOOLS),
        [json.dumps(each) for each in TOOLS],
        [
            {**each, "function": {**each["function"], "parameters": json.dumps(each["function"].get("parameters", {}))}}
            for each in TOOLS
        ],
    ],
)
def test_tools_as_text(tools: Any) -> None:
    objects = [{**e, "function": {**e["function"], "parameters": e["function"].get("parameters", {})}} for e in TOOLS]
    wanted = objects if isinstance(tools, list) and isinstance(tools[0], dict) else TOOLS
    assert render(family("qwen2_5"), written(CITY), tools) == render(family("qwen2_5"), written(CITY), wanted)


@pytest.mark.parametrize("tools", ["", "[]", "null", [], None])
def test_no_tools(tools: Any) -> None:
    assert texts(family("qwen2_5"), [written(CITY)], tools) == texts(family("qwen2_5"), [written(CITY)])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "{'city': 1}",
            r"'messages\[1\].tool_calls\[0\].function.arguments' is .*, which is no JSON .*: write it as JSON",
        ),
        ("", r"arguments' is '', which is no JSON .*: write {} where there are none"),
        ("5", r"arguments' is 5 \(int\), and should be an object"),
        ('["a"]', r"arguments' is \['a'\] \(list\), and should be an object"),
        ('{"a": 1, "a": 2}', r"arguments' is .*the key 'a' stands twice"),
    ],
)
def test_bad_arguments_are_named(arguments: str, said: str) -> None:
    with pytest.raises(RowError, match=said):
        texts(family("qwen2_5"), [written(arguments)])


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ("[{", "'tools' is '.*', which is no JSON"),
        ('{"type": "function"}', "'tools' is .* and should be a list of objects"),
        (["add"], r"'tools\[0\]' is 'add', which is no JSON"),
        ("[1]", r"'tools\[0\]' is 1 \(int\), and should be an object"),
    ],
)
def test_bad_tools_are_named(tools: Any, said: str) -> None:
    with pytest.raises(RowError, match=said):
        texts(family("qwen2_5"), [written(CITY)], tools)


@pytest.mark.parametrize("template", [NAMES, NAMES.replace("c.function.name", "''")])
def test_arguments_that_the_template_does_not_write_are_refused(template: str) -> None:
    with pytest.raises(RowError, match="does not write the arguments that a tool is called with"):
        texts(make_tokenizer(template), [written(CITY)])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            [{"type": "image", "image": "a.png"}],
            r"'messages\[2\].content', a tool's result, holds a part of type 'image'",
        ),
        ([{"type": "image_url", "image_url": {"url": "a"}}], "holds a part of type 'image_url'.*take the part out"),
        ({"sunny": True}, r"a tool's result, is an object \({'sunny': True}\): write it as JSON text"),
    ],
)
def test_results_that_are_no_text_are_refused(content: Any, said: str) -> None:
    messages = written(CITY)
    messages[2]["content"] = content
    with pytest.raises(RowError, match=said):
        Causal(family("qwen2_5"), "all", Limit()).encode([{"messages": messages}])
