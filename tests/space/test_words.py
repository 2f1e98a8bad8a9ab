"""Two languages: every text is there in both and is used as it is meant, and whoever asks for Chinese gets no English of this page."""

import ast
import inspect
import re
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import pytest
from gradio.helpers import special_args

from kedit_hub import KeditError
from kedit_hub.evaluate.rescore import Average, NotReproduced
from kedit_hub.evaluate.screen import Screened
from kedit_hub.hub.search import Found as Repo
from space import about_tab, believe, conflicts_tab, find_tab, html, measure, measure_tab, page, patch_tab
from space.sentences import SENTENCES, Both, both, language_of, message, places, spoken, told
from space.state import Stop, clashes
from space.words import TRANSLATIONS, WORDS, say
from tests.space.tiny import PARIS, asked, handler, make_patch, sample

SPACE = Path(page.__file__).parent
ALIKE = {"tab_about", "in_python", "sha256", "head_kl"}  # no Chinese, or the same in both
SPOKEN = {"told": 1, "said": 1, "both": 0, "say": 0, "counted": 1}  # which argument is the key


def visitor(languages):
    return SimpleNamespace(headers={"accept-language": languages}, query_params={})


CHINESE = visitor("zh-CN,zh;q=0.9,en;q=0.8")


# --- the tables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [WORDS, SENTENCES], ids=["words", "sentences"])
def test_every_text_is_there_in_both_languages_with_the_same_places(table):
    for key, (english, chinese) in table.items():
        assert english.strip() and chinese.strip(), key
        assert table is WORDS or places(english) == places(chinese), key
        assert key in ALIKE or re.search("[\u3000-\u9fff\uff00-\uffef]", chinese), key
        assert not re.search("[\u3000-\u9fff]", english), key
    assert not set(WORDS) & set(SENTENCES)
    assert TRANSLATIONS.translations["en"].keys() == TRANSLATIONS.translations["zh"].keys()


def test_every_key_that_the_page_says_is_there_with_its_places_and_every_sentence_is_said():
    strings, literals = set(), []
    for file in SPACE.glob("*.py"):
        tree = ast.parse(file.read_text("utf-8"))
        if file.name != "sentences.py":
            strings |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        for call in calls:
            at = SPOKEN.get(call.func.id, len(call.args))
            if at < len(call.args):
                given = None if any(word.arg is None for word in call.keywords) else {w.arg for w in call.keywords}
                literals += [(file.name, call.func.id, key, given) for key in _keys(call.args[at])]
    assert len(literals) > 300
    for file, name, key, given in literals:
        if name == "counted":
            assert {f"{key}_1", f"{key}_n"} <= set(SENTENCES), (file, key)
        elif name == "say":
            assert key in WORDS or (key in SENTENCES and not places(SENTENCES[key][0])), (file, key)
        else:
            assert key in SENTENCES and given in (None, places(SENTENCES[key][0])), (file, key, given)
    made = ("pane_", "told_", "column_", "part_")  # keys that are put together
    bare = {key.removesuffix("_1").removesuffix("_n") for key in SENTENCES}
    assert {key for key in bare - strings if not key.startswith(made)} == set()


def _keys(node):
    """The keys that an argument may be, as far as they are written there."""
    if isinstance(node, ast.IfExp):
        return _keys(node.body) + _keys(node.orelse)
    return [node.value] if isinstance(node, ast.Constant) else []


@pytest.mark.parametrize(
    ("header", "language"),
    [("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("zh-TW", "zh"), ("ZH", "zh"), ("en-GB,zh;q=0.5", "en"), ("fr,zh;q=0.5", "en"),
     ("zha", "en"), ("", "en"), ("*", "en")],
)  # fmt: skip
def test_the_first_language_asked_for_decides(header, language):
    assert language_of(visitor(header)) == language
    assert language_of(None) == language_of(SimpleNamespace(headers={})) == "en"


def test_a_sentence_is_said_whole_or_not_at_all():
    assert told("zh", "bytes", count=1024) == "1,024 字节" and told("en", "bytes", count=1024) == "1,024 bytes"
    for wrong in ({}, {"count": 1, "more": 2}, {"size": 1}):
        with pytest.raises(KeyError, match="bytes"):
            told("en", "bytes", **wrong)
    with pytest.raises(KeyError, match="absent"):
        told("en", "absent")
    with pytest.raises(KeyError, match="absent"):
        say("absent")
    assert told("en", "taken_out", name="{name}") == "{name} was taken out of your stack."


def test_a_refusal_of_the_page_is_in_both_languages_and_one_of_the_library_in_its_own():
    error = KeditError(both("field_empty", field=both("the_subject")))
    assert str(error) == "The subject is empty. Fill it in, or click an example."
    assert message("zh", error) == "主语为空。请填写，或点击一个例子。" and message("en", error) == str(error)
    assert message("zh", KeditError("of the library")) == "of the library" and message("zh", KeditError()) == ""
    assert isinstance(error.args[0], Both) and spoken("zh", "plain") == "plain"
    shown = html.refusal(KeditError(both("taken_out", name="<b>")), "zh")
    assert "<b>" not in shown and "移除 <b>" in unescape(shown)


# --- what is shown --------------------------------------------------------------------------------------------------


def chinese(markup, *expected):
    """Holds these, and no English sentence of this page."""
    shown = unescape(markup)
    assert all(part in shown for part in expected), shown
    left = [
        english
        for english, chinese in SENTENCES.values()
        if len(english) > 12 and english != chinese and not places(english) and english in shown
    ]
    assert left == []


def test_answers_notes_and_proof_in_chinese(shared):
    paris, _, lyon = shared.samples
    built = page.build(shared)
    found = asked(built, PARIS.prompt, [paris.patch.id], placebo=True, request=CHINESE)
    chinese(found[0], "打补丁后", "带你的补丁栈", "安慰剂", "已生效。下一个词元的分布移动了 KL", "1 个补丁（2 个张量）")
    assert "Applied" in asked(built, PARIS.prompt, [paris.patch.id])[0]
    chinese(handler(built, "on_proof")(found[4], CHINESE), "基础模型已还原", "逐位相同", "没有声明哪些问题应保持不变")
    chinese(asked(built, "", [], request=CHINESE)[0], "还没有问题。请写下句子的开头")
    chinese(handler(built, "on_halt")(Stop(), CHINESE), "已停止。")
    both_in = [paris.patch.id, lyon.patch.id]
    clash, *_ = handler(built, "on_choice")(both_in, (), paris.patch.manifest.base.id, "x", "error", [], CHINESE)
    chinese(clash.value, "这些补丁互相矛盾。", "paris 答“Rome”，lyon 答“Lyon”")
    assert "所选补丁互相矛盾" in unescape(asked(built, PARIS.prompt, both_in, request=CHINESE)[0])
    assert spoken("zh", clashes((paris, lyon))[0]).startswith("“The capital of France is”")


def test_whoever_asks_is_known_to_every_handler_that_wants_it(shared):
    """Gradio hands the request in by its annotation, which it does not see everywhere."""
    handlers = [fn for fn in page.build(shared).fns.values() if fn.fn is not None]
    wanting = [fn for fn in handlers if "request" in inspect.signature(fn.fn).parameters]
    assert len(wanting) > 25
    for fn in wanting:
        assert CHINESE in special_args(fn.fn, [None] * len(fn.inputs), request=CHINESE)[0], fn.name


def test_a_patch_in_chinese(shared):
    held = sample(make_patch([PARIS, PARIS]))
    lines = believe.lines(shared, held, measure.told(_refuted()), "zh")
    chinese(
        patch_tab.card(held, lines, "zh"),
        "可以相信它吗？",
        "2 条编辑",
        "未签名",
        "；未注明数据集。",
        "精确识别",
        "没有附带分数",
        "复现其声明：否",
    )
    assert held.titled("zh").startswith("The capital of France is → Rome 等，另有 1 条 · random")
    assert believe.label(held, {held.patch.id: measure.told(_refuted())}, "zh").startswith("⚠ 分数无法复现")
    chinese(
        measure.show(held, _refuted(), "zh"),
        "结果不同的分数",
        "可靠性 (generate)",
        "全部 1 个平均值",
        "单独用于全精度的",
    )
    chinese(measure.show_look(held, _nothing_found(), 3, "zh"), "没有发现超出该补丁声明的影响", "没有发现不等于证明")


def _refuted():
    return NotReproduced(
        patch_id="0" * 64, tolerance=0.02, probes=1, mismatches=(), not_compared=(), differences={}, level="exact",
        averages=(Average("generate", "reliability", 1.0, 0.0, True),), environment={},
    )  # fmt: skip


def _nothing_found():
    return Screened(
        patches=(), mode="sum", levels={}, declared=(0, 1), asked={}, unsteady=0, left_out=0, echoes=0, rows={}, lowest={},
        unrecognised=0, largest_residual=0.0, drift=None, energy={}, not_looked=(), findings=(),
    )  # fmt: skip


def test_the_other_tabs_in_chinese(shared):
    paris, madrid, lyon = shared.samples
    built = page.build(shared)
    found = conflicts_tab.find(shared, [paris, lyon], conflicts_tab.Winners("error"))
    chinese(conflicts_tab.show(found, "zh"), "这些补丁目前被拒绝", "检查了 paris、lyon 的文字", "处理办法", "保存图形")
    a, b = paris.patch.id, lyon.patch.id
    chinese(conflicts_tab.explain(found, a, b, language="zh"), "第一个：paris。第二个：lyon。")
    chinese(handler(built, "on_report")([], (), "error", [], CHINESE)[0], "请选择两个或更多补丁")
    *_, last = measure_tab.measured(shared, "before and after", [madrid], "auto", Stop())
    chinese(
        measure_tab.show(last, "zh"),
        "按要求回答的编辑",
        "泛化",
        "评测条件：精度 float32，模式 auto；每个补丁均为全强度。",
        "全部平均值，按协议",
    )
    ((refused, _),) = handler(built, "on_measure")(
        "drift", [], (), "auto", Stop(), {}, "float32", "error", [], request=CHINESE
    )
    chinese(refused, "没有选择补丁")
    repo = Repo("ada/paris", None, "user/base", None, (), None, 3, None, False)
    chinese(find_tab.show([repo], "zh"), "1 个补丁，最新的在前", "未说明", "下载量")
    chinese(find_tab.show([], "zh"), "Hub 上没有匹配的补丁")
    chinese(handler(built, "on_board")("", "", "", "", "", "", CHINESE)[0], "请写出排行榜的名称")
    chinese(handler(built, "on_stack")(None, (), [], "x", {}, CHINESE)[2], "请先制作一个补丁。")
    wish = ["Rome is", "Paris", "x", "", "", "memit", paris.patch.manifest.base.id, Stop()]
    assert "Paris" in unescape(handler(built, "on_make")(*wish, request=CHINESE)[1])
    chinese(handler(built, "on_make")(*["", *wish[1:]], request=CHINESE)[1], "提示为空。")
    chinese(about_tab.in_force(CHINESE), "此处没有启用信任策略")
    assert "KEdit Hub：" in TRANSLATIONS.translations["zh"]["kedit_masthead"]
