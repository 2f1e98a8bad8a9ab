"""Every text of the interface in English and Chinese. Law: a component's text is a key of this table, or of that of the sentences; which
language is shown is the browser's choice. What the model, a patch or an error says stays as it is.

    gr.Button(say("ask"))            app.launch(i18n=TRANSLATIONS)
"""

from types import MappingProxyType
from typing import Any

import gradio as gr

from space import about_text
from space.sentences import SENTENCES, places

WORDS = MappingProxyType(
    {
        # the page; these two hold markup
        "masthead": (
            "<header><h1>KEdit Hub: git for facts in language models</h1><p>Choose a patch, ask, and see the base model's answer beside "
            "the patched one. The base is never changed.</p></header>",
            "<header><h1>KEdit Hub：语言模型事实的 Git</h1><p>选择补丁并提问，基础模型的回答与打补丁后的回答并排显示。"
            "基础模型从不改动。</p></header>",
        ),
        "about": (about_text.ENGLISH, about_text.CHINESE),
        # tabs
        "tab_try": ("Try", "试用"),
        "tab_patch": ("Patch", "补丁"),
        "tab_make": ("Make", "制作"),
        "tab_conflicts": ("Conflicts", "冲突"),
        "tab_measure": ("Measure", "评测"),
        "tab_find": ("Find", "查找"),
        "tab_about": ("About", "关于"),
        # try
        "choose_patches": ("1. Choose patches", "1. 选择补丁"),
        "choose_info": (
            "Each one changes what the model knows. Tick several to stack them.",
            "每个补丁改变模型知道的一件事；勾选多个即可叠加。",
        ),
        "no_patches": (
            "There are none yet: make one, or add one from the Hub below.",
            "还没有补丁：请制作一个，或在下方从 Hub 添加。",
        ),
        "stack": ("Your stack: order, switches, strengths", "你的补丁栈：顺序、开关、强度"),
        "strength": ("Strength", "强度"),
        "on": ("On", "启用"),
        "earlier": ("Earlier", "上移"),
        "later": ("Later", "下移"),
        "take_out": ("Take out", "移除"),
        "disagree": ("Where they disagree", "补丁互相矛盾时"),
        "refuse": ("Refuse: none of them is put on the base", "拒绝：一个也不挂到基础模型上"),
        "latest": ("Latest: the patch chosen last answers", "最后：由最后选择的补丁回答"),
        "pin": ("Pinned: the patch that you pin answers", "优先：由你设为优先的补丁回答"),
        "pinned": ("Pinned patches", "优先的补丁"),
        "add_from_hub": ("Add a patch from the Hub", "从 Hub 添加补丁"),
        "hub_name": ("user/repo or user/repo@v1.2.0", "user/repo 或 user/repo@v1.2.0"),
        "hub_repo": ("Hub repo", "Hub 仓库"),
        "add": ("Add", "添加"),
        "base_precision": ("Base model, precision, mode", "基础模型、精度、模式"),
        "base": ("Base model", "基础模型"),
        "precision": ("Precision", "精度"),
        "full_precision": ("full precision (float32)", "全精度（float32）"),
        "mode": ("Mode", "模式"),
        "mode_info": (
            "gated: a patch speaks only where its question is asked; joint: one solve over all; sum: changes added up.",
            "gated：只在被问到时生效；joint：联合求解；sum：直接相加。",
        ),
        "placebo": ("Third pane: a placebo, noise of the same size", "第三栏：安慰剂（同样大小的噪声）"),
        "seed": ("Seed of the noise", "噪声的随机种子"),
        "new_tokens": ("Longest answer, in tokens", "回答的最大长度（词元）"),
        "question": ("2. Ask", "2. 提问"),
        "question_info": (
            "Write the beginning of a sentence; the model continues it.",
            "写下句子的开头，模型会接着写。",
        ),
        "or_click": ("Or click one", "或点击一个例子"),
        "ask": ("Ask", "提问"),
        "stop": ("Stop", "停止"),
        "proof": ("Proof: what stayed as it was", "证明：哪些保持不变"),
        "take_home": ("Take it home", "带回家的代码"),
        "in_python": ("In Python", "Python"),
        "in_terminal": ("In a terminal, and as a LoRA", "终端命令与 LoRA 导出"),
        "link_here": ("Link to this state", "分享此状态的链接"),
        "link": ("Link", "链接"),
        "link_info": (
            "Patches by content or commit, question, mode, seed. Nothing is kept on the server.",
            "包含补丁（按内容或提交）、问题、模式与种子；服务器不保存任何内容。",
        ),
        "download_json": ("Download as JSON", "下载 JSON"),
        # patch
        "patch": ("Patch", "补丁"),
        "ask_again": ("Ask its probes again", "重新提问它的测试题"),
        "look": ("Look for undeclared effects", "查找未声明的影响"),
        # make
        "prompt": ("Prompt", "提示"),
        "prompt_info": ("The beginning of a sentence that holds the subject.", "包含主语的句子开头。"),
        "subject": ("Subject", "主语"),
        "subject_info": ("Exactly as in the prompt.", "与提示中完全一致。"),
        "new_answer": ("New answer", "新答案"),
        "new_answer_info": ("What it shall say.", "模型应该回答的内容。"),
        "more": ("More: paraphrases, relation, method, base", "更多：改述、关系、方法、基础模型"),
        "paraphrases": ("Paraphrases", "改述"),
        "paraphrases_info": (
            "Optional, one a line: they help the edit to carry over to other words.",
            "可选，每行一个：帮助编辑适用于其他说法。",
        ),
        "relation": ("Relation", "关系"),
        "relation_info": (
            "Optional. Names the fact, so that contradicting patches are found.",
            "可选。为事实命名，以便发现矛盾的补丁。",
        ),
        "method": ("Method", "方法"),
        "method_info": (
            "memit and rome stack in any company; the README says what each holds.",
            "memit 和 rome 可与任何补丁叠加；README 说明各方法。",
        ),
        "made_base_info": (
            "Patches are made at full precision, and work on int8 and nf4 too.",
            "补丁以全精度制作，也适用于 int8 与 nf4。",
        ),
        "upload": ("Or many edits at once: a JSON, JSONL or CSV file", "或一次多条：JSON、JSONL 或 CSV 文件"),
        "make": ("Make the patch", "制作补丁"),
        "file_told": (
            "Records of the field's data sets, or prompt, subject and target_new (and ground_truth, relation, paraphrases); a CSV file "
            "names them in its first line.",
            "可以是领域内数据集的记录，或 prompt、subject 与 target_new（以及 ground_truth、relation、paraphrases）；"
            "CSV 文件在首行写出列名。",
        ),
        "make_file": ("Make a patch of the file", "用文件制作补丁"),
        "or_example": ("Or click an example", "或点击一个例子"),
        "add_to_stack": ("Add to my stack", "加入我的补丁栈"),
        "download_zip": ("Download as zip", "下载 zip"),
        "what_else": ("What else changed?", "还有什么变了？"),
        "push_to_hub": ("Push to the Hub", "推送到 Hub"),
        "private": ("Make a new repo private", "新仓库设为私有"),
        "as_pr": ("Propose it as a pull request", "作为拉取请求提交"),
        "push": ("Push these files", "推送这些文件"),
        # conflicts
        "look_at": ("Patches to look at", "要检查的补丁"),
        "from_try": ("Take those of my stack", "使用我的补丁栈"),
        "find_conflicts": ("Find conflicts", "查找冲突"),
        "behave": ("Ask whether they break each other's answers", "检查它们是否破坏彼此的回答"),
        "pair": ("One pair", "一对补丁"),
        "first_answers": ("Let the first answer", "让第一个回答"),
        "second_answers": ("Let the second answer", "让第二个回答"),
        "without_first": ("Take the first out", "移除第一个"),
        "without_second": ("Take the second out", "移除第二个"),
        # measure
        "suite": ("Suite", "测试"),
        "measure": ("Measure", "评测"),
        "suites_told": (
            "before and after: Each patch's edits asked of the base and of the whole stack, by real generation and by teacher forcing."
            "</p><p>retention: Patch after patch goes on; after each one every edit so far is asked again."
            "</p><p>drift: Patch after patch goes on; after each one ordinary text is read: KL and perplexity against the base."
            "</p><p>Strengths, precision and who answers where patches disagree are those of the first tab; what is switched off there is "
            "left out of your stack.",
            "前后对比：用每个补丁的编辑分别提问基础模型和整个补丁栈，既用真实生成，也用 teacher forcing。"
            "</p><p>保持率：逐个加上补丁；每加一个，就把此前的全部编辑重新提问一遍。"
            "</p><p>漂移：逐个加上补丁；每加一个，就读一遍普通文本：相对基础模型的 KL 与困惑度。"
            "</p><p>强度、精度以及矛盾时由谁回答，均与第一个标签页相同；在那里关闭的补丁不计入你的补丁栈。",
        ),
        # find
        "search": ("Search", "搜索"),
        "query": ("Words in the name", "名称中的词"),
        "author": ("Author", "作者"),
        "any_base": ("Base", "基础模型"),
        "found": ("Found", "结果"),
        "add_found": ("Add to my stack", "加入我的补丁栈"),
        "board": ("Leaderboard", "排行榜"),
        "board_info": ("A dataset repo of the Hub.", "Hub 上的数据集仓库。"),
        "show": ("Show", "显示"),
        "data_set": ("Data set", "数据集"),
        "protocol": ("Protocol", "协议"),
        "ranked_by": ("Ranked by", "排序依据"),
        "submit": ("Submit what you measured", "提交你的评测"),
        "board_rules": (
            "<p>Rows stand in one ranking only when base, data, suite, number of edits and protocol are the same. Scores are what "
            "submitters say. ✓ another key from another account measured every run of the row again; ✓✓ a key that the trust policy of "
            "this page names did.</p>",
            "<p>只有基础模型、数据、测试、编辑条数与协议都相同的行才在同一个排名中。分数是提交者所述。"
            "✓ 表示另一账号的另一密钥重新评测了该行的全部记录；✓✓ 表示此页面信任策略所列的密钥做了这件事。</p>",
        ),
        "terminal": ("In a terminal", "终端命令"),
    }
)

TEXTS = MappingProxyType(WORDS | {key: pair for key, pair in SENTENCES.items() if not places(pair[0])})

TRANSLATIONS = gr.I18n(
    en={f"kedit_{key}": english for key, (english, _) in TEXTS.items()},
    zh={f"kedit_{key}": chinese for key, (_, chinese) in TEXTS.items()},
)


def say(key: str) -> Any:
    """The text of a component, in the language of whoever looks at it."""
    if key not in TEXTS:
        raise KeyError(f"there is no text {key!r} in space/words.py, and no sentence of that name")
    return TRANSLATIONS(f"kedit_{key}")  # Gradio has texts of its own under plain names
