"""Messages become the prompts that Transformers makes of them, and templates can do no harm."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

import krakenlm
import tiny
from krakenlm.data import chat as chat_module
from krakenlm.data.chat import Chat, chat_if, chat_prompts
from krakenlm.data.folder_tokenizer import read_tokenizer
from krakenlm.data.tokenizer import load_tokenizer
from krakenlm.engine.generation import USUAL_REPLY, Ranks, Step, generate_tokens, prepare
from krakenlm.errors import KrakenError
from tokenizer_kinds import byte_fallback, byte_level

pytestmark = pytest.mark.usefixtures("own_signals")

# Each in the manner of a family's own.
CHATML = (  # SmolLM2, Qwen2: a system message where none is given
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = """\
{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- tools[0] | tojson(indent=4) }}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
    "{%- set rest = messages[1:] %}{%- else %}{%- set rest = messages %}{%- endif %}"
    "{{ bos_token }}{% for message in rest %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{% if loop.last and system is defined %}"
    "{{ '[INST] ' + system + '\n\n' + message['content'] + '[/INST]' }}{% else %}"
    "{{ '[INST] ' + message['content'] + '[/INST]' }}{% endif %}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] | trim + '<end_of_turn>\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
# What else a template may use: loop controls, namespaces, ``generation``, dict, tojson's arguments.
ALL_SORTS = """\
{% set ns = namespace(count=0, last='') %}
{% for message in messages %}
    {% set ns.count = ns.count + 1 %}
    {% if message.role == 'system' %}
        {% continue %}
    {% endif %}
    {% generation %}
    {% set inside = message.content %}
    {{ inside | tojson }} {{ {'b': '<é>', 'a': [1]} | tojson(sort_keys=true, indent=2) }}
    {% endgeneration %}
    {{ inside is defined }}{{ dict(a=1).a }}{{ dict.fromkeys(['x'], 2).x }}
    {% break %}
{% endfor %}
{{ ns.count }}{{ unk_token }}{{ tools is none }}{{ documents is none }}{{ pad_token is defined }}
"""
ENDLESS = (
    "{% set many = range(10**5) %}{% for a in many %}{% for b in many %}{{ b }}{% endfor %}"
    "{% endfor %}"
)
TEMPLATES = {
    "ChatML": CHATML, "Llama 3": LLAMA_3, "Mistral": MISTRAL, "Gemma": GEMMA, "all": ALL_SORTS,
}  # fmt: skip
MARKS = [
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>"),
]
MESSAGES = ["the cat", " it's <|im_end|>\n a 'trap' 🦊 ", "", "{{ 7 * 7 }}{% raw %}"]
SYSTEMS = [None, "", "Be\nbrief. "]


def saved(folder: Path, template: str | None, kind=byte_level) -> PreTrainedTokenizerFast:
    """A tokenizer with the marks of all templates, as Transformers saves it."""
    made = kind()
    made.add_special_tokens({"extra_special_tokens": MARKS})
    made.chat_template = template
    made.save_pretrained(folder)
    return load_tokenizer(folder)


def prompts_of(folder: Path, texts: list[str], system: str | None = None) -> list[str]:
    return chat_prompts(folder, read_tokenizer(folder), texts, Chat(system))


@pytest.mark.parametrize("kind", [byte_level, byte_fallback])
@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_of_transformers(name, kind, tmp_path):
    reference = saved(tmp_path, TEMPLATES[name], kind)
    ours = read_tokenizer(tmp_path)
    for system in [None] if name == "Gemma" else SYSTEMS:
        found = prompts_of(tmp_path, MESSAGES, system)
        for text, prompt in zip(MESSAGES, found, strict=True):
            conversation = Chat(system).messages(text)
            options: dict[str, Any] = {"add_generation_prompt": True}
            wanted = reference.apply_chat_template(conversation, tokenize=False, **options)
            assert prompt == wanted
            ids = reference.apply_chat_template(conversation, return_dict=False, **options)
            assert ours.encode(prompt) == ids
            if name != "all":
                assert ids.count(ours.bos_token_id) == ("bos_token" in TEMPLATES[name])


def test_special_tokens_are_named_as_transformers_names_them(tmp_path):
    reference = saved(tmp_path, CHATML)
    assert read_tokenizer(tmp_path).special_tokens == reference.special_tokens_map
    assert read_tokenizer(tmp_path).eos_token_id == reference.eos_token_id


def in_settings(folder: Path, value: Any) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": value}))


def test_a_template_is_found_where_transformers_finds_it(tmp_path):
    saved(tmp_path, "file")
    in_settings(tmp_path, "settings")
    assert prompts_of(tmp_path, ["x"]) == ["settings"]
    named = [{"name": "rag", "template": "rag"}, {"name": "default", "template": "named"}]
    in_settings(tmp_path, named)
    assert prompts_of(tmp_path, ["x"]) == ["named"]
    assert load_tokenizer(tmp_path).get_chat_template() == "named"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert prompts_of(tmp_path, ["x"]) == ["file"]
    assert load_tokenizer(tmp_path).get_chat_template() == "file"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (GEMMA, r"jinja refuses p\.txt:2: System role not supported: leave out --system or --chat"),
        ("{% if %}", r"jinja fails \(line 1: Expected an expression.*: copy it again, or leave"),
        ("{{ nobody.name }}", "'nobody' is undefined"),
        ("{{ messages[0].content.__class__ }}{{ ''.__class__.mro() }}", "unsafe"),
        ("{{ namespace(__init__=1) }}", "must not begin with _"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{% for a in range(9**6) %}{% endfor %}", "Range too big"),
        ("{{ 'x' * 10**10 }}", "too much memory"),
        ("{% include 'tokenizer.json' %}", "no loader"),
    ],
)
def test_a_template_that_fails_is_one_line(template, said, tmp_path):
    saved(tmp_path, template)
    ours = read_tokenizer(tmp_path)
    with pytest.raises(KrakenError, match=said) as refusal:
        chat_prompts(tmp_path, ours, ["a", "b"], Chat("s"), ["p.txt:2", "p.txt:3"])
    assert "\n" not in str(refusal.value) and str(tmp_path) in str(refusal.value)


@pytest.mark.parametrize("template", [ENDLESS, "{{ 9**(9**9) }}"], ids=["loop", "one step"])
def test_a_template_without_an_end_is_ended(template, tmp_path, monkeypatch):
    saved(tmp_path, template)
    monkeypatch.setattr(chat_module, "SECONDS", 0.2)
    with pytest.raises(KrakenError, match=r"no end after 0\.2 seconds"):
        prompts_of(tmp_path, ["a"])


def test_what_is_no_template_is_refused(tmp_path):
    saved(tmp_path, None)
    with pytest.raises(KrakenError, match=r"has no chat template, neither .* leave out --chat, or"):
        prompts_of(tmp_path, ["a"])
    in_settings(tmp_path, [{"name": "rag", "template": ""}])
    with pytest.raises(KrakenError, match=r"none of them is named default: write .*\.jinja"):
        prompts_of(tmp_path, ["a"])
    in_settings(tmp_path, 5)
    with pytest.raises(KrakenError, match="chat_template is 5, which is no text"):
        prompts_of(tmp_path, ["a"])
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(KrakenError, match="is UTF-16 text"):
        prompts_of(tmp_path, ["a"])


def test_a_system_message_needs_a_chat():
    assert chat_if(False, None) is None
    assert (chat_if(True, None), chat_if(True, "")) == (Chat(), Chat(""))
    with pytest.raises(KrakenError, match=r"--system: only a chat has .* add --chat"):
        chat_if(False, "Be brief")


# --- krakenlm generate --chat ---------------------------------------------------------------------

TURNS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}model: {% endif %}"
)
NEW = ("--max-new-tokens", 6)


@pytest.fixture
def chatty(own_model: Path) -> Path:
    """A model whose tokenizer has a template."""
    (own_model / "chat_template.jinja").write_text(TURNS)
    return own_model


@pytest.fixture
def cli(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: tiny.call(capfd, "generate", *arguments)


def continued(model: Path, prompts: list[str], **options: Any) -> list[str]:
    return krakenlm.generate(model, prompts, max_new_tokens=6, **options)


@pytest.mark.dist
def test_answers_are_those_to_the_prompt_that_the_template_makes(cli, chatty):
    (wanted,) = continued(chatty, ["system: Be\nuser: end of\nmodel: "])
    asked = ("--chat", "--system", "Be", "--prompt", "end of", *NEW)
    for devices in (1, 2):
        outcome = cli(chatty, *asked, "--devices", devices)
        assert (outcome.code, outcome.out, outcome.err) == (0, f"{wanted}\n", "")
    assert continued(chatty, ["end of"], chat=True, system="Be") == [wanted]
    entry = json.loads(cli(chatty, *asked, "--json", "-").out)
    assert (entry["prompt"], entry["system"], entry["answer"]) == ("end of", "Be", wanted)


def test_messages_of_a_file_stand_above_their_answers(cli, chatty, tmp_path):
    (tmp_path / "p.txt").write_text("Line 1\nThe\n")
    wanted = continued(chatty, [f"user: {text}\nmodel: " for text in ("Line 1", "The")])
    outcome = cli(chatty, "--chat", "--prompt-file", "p.txt", *NEW, "--json", "a.jsonl")
    said = [f"--- p.txt:1\nLine 1\n\n{wanted[0]}\n", f"--- p.txt:2\nThe\n\n{wanted[1]}\n"]
    assert (outcome.code, outcome.out) == (0, "".join(said))
    entries = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(e["line"], e["prompt"], e["answer"]) for e in entries] == [
        (1, "Line 1", wanted[0]), (2, "The", wanted[1]),
    ]  # fmt: skip
    assert all("system" not in entry for entry in entries)


def test_an_answer_ends_at_any_end_that_the_model_or_its_tokenizer_names(chatty):
    tokenizer = load_tokenizer(chatty)
    request, _ = prepare(chatty, ["a"], chat=Chat())
    assert request.eos_token_ids == {tokenizer.eos_token_id}
    assert request.max_new_tokens < USUAL_REPLY  # what the context leaves
    (chatty / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert prepare(chatty, ["a"], chat=Chat())[0].eos_token_ids == {7, 9, tokenizer.eos_token_id}
    assert prepare(chatty, ["a"])[0].eos_token_ids == {7, 9}


def test_the_end_of_a_turn_is_no_part_of_the_answer(cli, chatty):
    request, tokenizer = prepare(chatty, ["The"], chat=Chat(), max_new_tokens=6)
    steps: list[Step] = []
    generate_tokens(request, Ranks(), steps.append)
    tokens = [step.tokens[0] for step in steps]
    end = tokens[4]
    (chatty / "generation_config.json").write_text(json.dumps({"eos_token_id": [299, end]}))
    entry = json.loads(cli(chatty, "--chat", "--prompt", "The", *NEW, "--json", "-").out)
    assert entry["finish_reason"] == "stop" and entry["tokens"] == tokens.index(end) + 1
    whole = tokenizer.decode([*request.prompts[0], *tokens[: tokens.index(end)]])
    assert whole == tokenizer.decode(request.prompts[0]) + entry["answer"]


def test_a_message_that_its_template_refuses_is_one_line(cli, chatty, tmp_path):
    refusing = "{% if 'b' in messages[0].content %}{{ raise_exception('no b') }}{% endif %}"
    (chatty / "chat_template.jinja").write_text(refusing)
    (tmp_path / "p.txt").write_text("a\nb\n")
    outcome = cli(chatty, "--chat", "--prompt-file", "p.txt", "--json", "a.jsonl")
    (line,) = outcome.complaints
    assert (outcome.code, outcome.out) == (2, "") and "refuses p.txt:2: no b: leave" in line
    assert not (tmp_path / "a.jsonl").exists()


def test_a_model_without_a_template_is_no_partner(cli, tiny_model):
    outcome = cli(tiny_model, "--chat", "--prompt", "a")
    (line,) = outcome.complaints
    assert outcome.code == 2 and "has no chat template" in line
    assert cli(tiny_model, "--system", "s", "--prompt", "a").complaints == [
        "krakenlm: --system: only a chat has a system message: add --chat"
    ]
