"""17 · Card and template injection (chat templates as backdoors; SGLang CVE-2026-5760, unsandboxed Jinja): text of a patch as
HTML, Markdown, YAML, a template or an escape sequence. It is shown, never interpreted, and a patch carries no template.
"""

import re
from itertools import pairwise

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from kedit_hub.commands.output import shown
from kedit_hub.edits import Edit, Probe
from kedit_hub.errors import PatchFormatError
from kedit_hub.patch import Patch
from space import html
from tests.attacks.tools import Case, refuse, setting
from tests.cli.conftest import kedit
from tests.patch.build import EDITS, make_patch

TEXTS = {
    "script": "<script>alert(1)</script>",
    "image": "<img src=x onerror=alert(1)>",
    "closing tags": "</code></pre></td></table><b>out</b>",
    "svg": "<svg/onload=alert(1)>",
    "comment": "<!-- --><b>x</b>",
    "entity": "&lt;script&gt;&#60;b&#62;&amp;",
    "Markdown link": "[x](javascript:alert(1))",
    "Markdown image": "![x](https://example.org/a.png)",
    "reference link": "[x][1]\n\n[1]: javascript:alert(1)",
    "autolink": "<https://example.org> www.example.org me@example.org",
    "emphasis": "*bold* _it_ ~~s~~ $x^2$ ==m==",
    "heading": "x\n# Heading\n## Use",
    "table": "a | b | c\n|---|---|",
    "rule": "x\n\n---\n\ny",
    "fence": "```\n</code>```\n```python\nimport os\n```",
    "backticks": "`code` and ``more`` and ```",
    "front matter": "x\n---\nbase_model: evil/model\n---\n# y",
    "YAML tag": "--- !!python/object/apply:os.system ['id']",
    "YAML anchor": "a: &a [*a, *a]",
    "Jinja": "{{ config.__class__.__init__.__globals__['os'].popen('id').read() }}",
    "Jinja block": "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "template literal": "${alert(1)} #{7*7} <%= 7*7 %>",
    "shell": "$(id) `id` ; rm -rf ~",
    "mention": ":smile: @user #1 user/repo#2",
    "quotes": "' onmouseover='alert(1)\" onfocus=\"alert(1)",
    "Python": "')\nimport os; os.system('id')  #",
    "triple quotes": '"""\nimport os\n"""',
    "backslashes": "\\' \\\" \\\\ \\n \\x41 \\u0041",
    "terminal": "\x1b]0;owned\x07\x9b31m\x1b[2J",
    "carriage return": "good\rbad",
    "direction": "right\u202eto\u2066left",
    "separators": "a\u2028b\u2029c\x85d",
    "formula": '=HYPERLINK("http://example.org")',
}


def hostile(text: str) -> Patch:
    """The text in every field of a patch that is free text."""
    value = text.strip()
    first = Edit(
        value, value, value, value, rephrases=[value + " r"], locality=[Probe(value + " l", value, text)],
        portability=[Probe(value + " p", value, text)], relation=text, paraphrases=[value + " q"], id=text,
    )  # fmt: skip
    patch = make_patch(edits=[first, EDITS[1]], settings={"note": text, "list": [text]})
    return patch.replace_evals(
        {"protocols": {text: {text: 1.0, "reliability": {text: 0.5}}}, "drift": {text: 0.1}, text: text}
    )


CASES = {
    **{
        f"{name} as method": Case(setting("method", value=text), PatchFormatError, "method")
        for name, text in TEXTS.items()
    },
    **{
        f"{name} as version": Case(setting("provenance", "version", value=text), PatchFormatError, "version")
        for name, text in TEXTS.items()
    },
    "chat template": Case(setting("chat_template", value="{{ messages }}"), PatchFormatError, "chat_template"),
    "template of an edit": Case(setting("edits", 0, "template", value="{{x}}"), PatchFormatError, "'template'"),
    "HTML as model type": Case(setting("base", "model_type", value="<b>"), PatchFormatError, "model_type"),
    "HTML as setting name": Case(setting("settings", "<b>", value=1), PatchFormatError, "settings.<b>"),
    "HTML as package": Case(setting("provenance", "versions", value={"<b>": "1"}), PatchFormatError, "versions"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name):
    refuse(CASES[name])


@pytest.mark.parametrize("name", TEXTS)
def test_the_card_shows_it_and_nothing_more(name):
    patch = hostile(TEXTS[name])
    card = patch.files("user/repo")["README.md"].decode()
    front, body = re.match(r"---\n(.*?)\n---\n(.*)", card, re.S).groups()
    assert yaml.safe_load(front)["base_model"] == "org/base"
    assert ModelCard(card).data.tags[:3] == ["kedit", "knowledge-editing", "model-patch"]
    tokens = MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(body)
    inline = {child.type for token in tokens for child in token.children or ()}
    assert not [token for token in tokens if token.type == "html_block"]
    assert not inline & {"html_inline", "image", "link_open", "em_open", "s_open"}
    headings = [inner.content for outer, inner in pairwise(tokens) if outer.type == "heading_open"]
    assert headings == [f"Model patch {patch.id[:12]}", "Use", "Edits", "Scores", "Contents"]
    fences = [token for token in tokens if token.type == "fence"]
    assert [fence.info for fence in fences] == ["python"]
    assert fences[0].content == (
        f"import kedit_hub\n\nm = kedit_hub.apply('user/repo')\nm.ask({TEXTS[name].strip()!r})\n"
    )
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", body)


@pytest.mark.parametrize("name", TEXTS)
def test_the_page_shows_it_and_nothing_more(name):
    markup = html.note("error", TEXTS[name]) + html.table((TEXTS[name],), [(TEXTS[name],)])
    assert not set(re.findall(r"<\s*/?\s*([A-Za-z!%]+)", markup)) - set(
        ["div", "p", "table", "thead", "tbody", "tr", "th", "td"]
    )
    assert "${" not in markup and "{{" not in markup and "{%" not in markup and "javascript:" not in markup
    assert set(re.findall(r'(\w+)="', markup)) <= {
        "class",
        "role",
        "scope",
        "tabindex",
        "label",
    }  # aria-label, escaped as the rest


@pytest.mark.parametrize("name", TEXTS)
def test_the_terminal_is_not_driven(name, tmp_path, monkeypatch):
    monkeypatch.setenv("KEDIT_HOME", str(tmp_path / "home"))
    folder = hostile(TEXTS[name]).save(tmp_path / "p")
    for arguments in (["show", folder], ["show", folder, "--json"], ["verify", folder, "--no-base"]):
        done = kedit(*arguments)
        assert not [char for char in done.out + done.err if not char.isprintable() and char != "\n"]
    assert shown(TEXTS[name]).isprintable()


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "tokenizer_config.json", "generation_config.json", "modeling.py"]
)
def test_templates_beside_a_patch_are_never_opened(name, tmp_path):
    folder = make_patch().save(tmp_path / "p")
    (folder / name).write_text("{{ 7 * 7 }}")
    (folder / name).chmod(0)
    assert Patch.load(folder) == make_patch()
