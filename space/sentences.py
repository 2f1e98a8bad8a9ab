"""Every sentence that the page itself says while somebody uses it, in English and Chinese. Law: the language is a value that comes with a
request; what the model, a patch, a card or an error of the library says stays as it is.

    told("zh", "taken_out", name="lyon")        in the language of whoever asked: language_of(request)
    raise KeditError(both("no_question"))         where nobody knows yet to whom it is said; str() of it is English
"""

import re
from types import MappingProxyType
from typing import Literal, TypeVar

import gradio as gr

Language = Literal["en", "zh"]
T = TypeVar("T")
MAX_HEADER = 500  # characters of Accept-Language that are read

SENTENCES = MappingProxyType(
    {
        # --- everywhere -------------------------------------------------------------------------------------------
        "comma": (", ", "、"),
        "nothing_said": ("(nothing)", "（无）"),
        "and_more": ("and {count:,} more.", "另有 {count:,} 项。"),
        "more_lines": ("… and {count:,} more lines", "……另有 {count:,} 行"),
        "keep_drawing": ("Keep the drawing", "保存图形"),
        "as_png": ("as PNG", "存为 PNG"),
        "not_said": ("not said", "未说明"),
        "none": ("none", "无"),
        "yes": ("yes", "是"),
        "no": ("NO", "否"),
        "stopped": ("Stopped.", "已停止。"),
        "reliability": ("reliability", "可靠性"),
        "generalization": ("generalization", "泛化"),
        "locality": ("locality", "局部性"),
        "portability": ("portability", "可移植性"),
        "score": ("Score", "指标"),
        "not_measured": ("Not measured.", "未评测。"),
        "interval": (" ({low} to {high})", "（{low} 至 {high}）"),
        "more_scores": ("and {count:,} more scores.", "另有 {count:,} 项指标。"),
        "more_protocols": ("and {count:,} more protocols.", "另有 {count:,} 种协议。"),
        "how_sure": (
            "In brackets a 95 % interval over edits (bootstrap), where there are several; then how many questions were scored.",
            "括号内为按编辑自助法（bootstrap）得到的 95 % 区间（多条编辑时）；其后是计分的问题数。",
        ),
        "edits_1": ("{count:,} edit", "{count:,} 条编辑"),
        "edits_n": ("{count:,} edits", "{count:,} 条编辑"),
        "patches_1": ("{count:,} patch", "{count:,} 个补丁"),
        "patches_n": ("{count:,} patches", "{count:,} 个补丁"),
        "modules_1": ("{count:,} module", "{count:,} 个模块"),
        "modules_n": ("{count:,} modules", "{count:,} 个模块"),
        "tensors_1": ("{count:,} tensor", "{count:,} 个张量"),
        "tensors_n": ("{count:,} tensors", "{count:,} 个张量"),
        # --- a patch in a list ------------------------------------------------------------------------------------
        "others": (" and {count} more", " 等，另有 {count} 条"),
        "made_here": (" · made here", " · 在此制作"),
        "mark_inconsistent": ("⚠ scores do NOT follow from its answers · ", "⚠ 分数与其记录的回答不符 · "),
        "mark_refuted": ("⚠ scores do NOT reproduce · ", "⚠ 分数无法复现 · "),
        "mark_noted": ("⚠ scores did NOT reproduce, says its author · ", "⚠ 作者称分数未能复现 · "),
        # --- try: the answers -------------------------------------------------------------------------------------
        "pane_base": ("Base", "基础模型"),
        "pane_patched": ("Patched", "打补丁后"),
        "pane_placebo": ("Placebo", "安慰剂"),
        "told_base": ("without any patch", "不带任何补丁"),
        "told_patched": ("with your stack", "带你的补丁栈"),
        "told_placebo": ("noise of the same size in the same places", "同样位置、同样大小的噪声"),
        "answer_of": ("{who} answer", "{who}的回答"),
        "legend": (
            "Each token with the probability it was said with; the thin bar is what the base would have given it. Marked from where an "
            "answer parts from the base's.",
            "每个词元标出其生成概率；细条是基础模型会给它的概率。从与基础模型的回答分叉处起加以标记。",
        ),
        "no_placebo": ("No placebo: {why}.", "没有安慰剂：{why}。"),
        "next_tokens": ("Next token, {count} most probable", "下一个词元，概率最高的 {count} 个"),
        "next_token_of": ("{who}: next token", "{who}：下一个词元"),
        "token_by_token": ("Token by token.", "逐词元。"),
        "parts_at": (" It parts from the base at token {at}.", "从第 {at} 个词元起与基础模型分叉。"),
        "tokens_of": ("{who}: token by token", "{who}：逐词元"),
        "token_told": (
            "token {at}: {p:.1f} %; base {p_base:.1f} %; likeliest: {others}",
            "第 {at} 个词元：{p:.1f} %；基础模型 {p_base:.1f} %；最可能的：{others}",
        ),
        "no_patch": ("No patch is chosen: both sides are the base.", "没有选择补丁：两侧都是基础模型。"),
        "applied_how": (
            "{patches} with {tensors} attached to {modules}: {paths}. Mode {mode} ({why}). {seconds:.2f} s.",
            "{patches}（{tensors}）挂接在 {modules}上：{paths}。模式 {mode}（{why}）。用时 {seconds:.2f} 秒。",
        ),
        "placebo_moved": (" The placebo moved it by KL {kl:.3g}.", "安慰剂使其移动 KL {kl:.3g}。"),
        "applied": (
            "Applied. The next-token distribution moved by KL {kl:.3g} nats.",
            "已生效。下一个词元的分布移动了 KL {kl:.3g} nats。",
        ),
        "applied_later": (
            "Applied. The next token is untouched (KL 0); a later one changed.",
            "已生效。下一个词元没有变化（KL 0），变化出现在更后面的词元。",
        ),
        "applied_not": (
            "KL 0: the patches changed nothing about this question. None of them is about it.",
            "KL 0：这些补丁没有改变对该问题的回答，它们都与此问题无关。",
        ),
        # --- try: the proof ---------------------------------------------------------------------------------------
        "restored": ("Base restored", "基础模型已还原"),
        "weights_equal": ("sha256 of all its weights equal, ", "全部权重的 sha256 一致，"),
        "weights_changed": ("NOT: its weights have changed, ", "没有还原：权重已改变，"),
        "logits_equal": (
            "; with the patches off its logits for this question are the same, bit for bit.",
            "；取下补丁后，对该问题的 logits 逐位相同。",
        ),
        "logits_changed": (
            "; with the patches off its logits are NOT what they were.",
            "；取下补丁后，logits 与原来不同。",
        ),
        "no_neighbours": (
            "These patches name no questions that they leave alone, so none was asked.",
            "这些补丁没有声明哪些问题应保持不变，因此没有提问。",
        ),
        "unchanged": (
            "{kept}/{count} unchanged: questions that these patches are to leave alone, asked with and without them.",
            "{kept}/{count} 保持不变：这些补丁不应影响的问题，在带补丁与不带补丁时各问了一次。",
        ),
        "neighbours_edited": (
            "Left out: {count:,} that an edit of your stack changes on purpose.",
            "略去：{count:,} 个，因为你的补丁栈中有编辑有意改变其答案。",
        ),
        "neighbours_long": (
            "Left out: {count:,} that are too long to be asked here.",
            "略去：{count:,} 个，因为过长，无法在此提问。",
        ),
        "base_said": ("Base:", "基础模型："),
        "patched_said": ("Patched:", "打补丁后："),
        "open_them": ("Open them one by one", "逐一展开"),
        # --- try: the rest ----------------------------------------------------------------------------------------
        "disagree_here": ("These patches disagree.", "这些补丁互相矛盾。"),
        "clash": (
            '"{question}": {first} says "{one}", {second} says "{other}"',
            "“{question}”：{first} 答“{one}”，{second} 答“{other}”",
        ),
        "disagree_refused": (
            "The chosen patches disagree. Untick one of them, or choose which of them answers.",
            "所选补丁互相矛盾。请取消勾选其中一个，或选择由哪一个回答。",
        ),
        "added": ("Added {where}.", "已添加 {where}。"),
        "added_other_base": (
            "Added. It was made for {base}: choose that base to use it.",
            "已添加。它是为 {base} 制作的：使用前请选择该基础模型。",
        ),
        "no_question": (
            "There is no question yet. Write the beginning of a sentence, or click an example.",
            "还没有问题。请写下句子的开头，或点击一个例子。",
        ),
        "question_long": (
            "The question has {count:,} characters; at most {most} are taken here.",
            "问题有 {count:,} 个字符；此处最多接受 {most} 个。",
        ),
        "question_tokens": (
            "The question has {count} tokens; this model reads 1 to {most}.",
            "问题有 {count} 个词元；此模型可读 1 至 {most} 个。",
        ),
        "new_tokens_out": (
            "max_new_tokens is {count}; it has to lie in 1 to {most}.",
            "max_new_tokens 为 {count}；必须在 1 至 {most} 之间。",
        ),
        "conflicts_out": (
            'conflicts is {said!r}; take "error", "latest" or "pin".',
            'conflicts 为 {said!r}；请用 "error"、"latest" 或 "pin"。',
        ),
        "mode_out": ("mode is {said!r}; take one of {modes}.", "mode 为 {said!r}；请用以下之一：{modes}。"),
        "seed_out": (
            "The seed is {seed}; it has to lie in 0 to {most}.",
            "随机种子为 {seed}；必须在 0 至 {most} 之间。",
        ),
        "answer_slow": (
            "This took longer than {seconds:g} s and was ended. Ask for fewer new tokens.",
            "用时超过 {seconds:g} 秒，已中止。请减少要生成的词元。",
        ),
        # --- what is chosen and held ------------------------------------------------------------------------------
        "held_too_much": (
            "With this one you would hold {count} patches of {size:,} bytes; at most {most} of {most_size:,} bytes are kept here. "
            "Reload the page to start anew.",
            "加上这一个，你将持有 {count} 个补丁，共 {size:,} 字节；此处最多保留 {most} 个、{most_size:,} 字节。重新载入页面即可从头开始。",
        ),
        "no_base": (
            "There is no base {base!r} here. Choose one of {bases}.",
            "这里没有基础模型 {base!r}。请从以下选择：{bases}。",
        ),
        "no_precision": (
            "There is no precision {precision!r}. Choose one of {precisions}.",
            "没有精度 {precision!r}。请从以下选择：{precisions}。",
        ),
        "too_many_chosen": (
            "{count} patches are chosen; at most {most} are stacked here.",
            "选择了 {count} 个补丁；此处最多叠加 {most} 个。",
        ),
        "patch_gone": (
            "The patch {key!r} is not here any more. Add it again.",
            "补丁 {key!r} 已不在这里。请重新添加。",
        ),
        "patch_large": (
            "'{ref}' has {size:,} bytes; this page takes patches up to {most:,}.",
            "'{ref}' 有 {size:,} 字节；此页面接受不超过 {most:,} 字节的补丁。",
        ),
        "patch_many_edits": (
            "'{ref}' has {count:,} edits; this page takes up to {most:,}.",
            "'{ref}' 有 {count:,} 条编辑；此页面最多接受 {most:,} 条。",
        ),
        "patch_other_base": (
            "'{ref}' was made for {base}; this page has {bases}. Try it with kedit_hub.apply('{ref}').",
            "'{ref}' 是为 {base} 制作的；此页面有 {bases}。可用 kedit_hub.apply('{ref}') 试用。",
        ),
        "patch_no_profile": (
            "'{ref}' was made under a base profile that this page does not have. Try it with kedit_hub.apply('{ref}'), which measures one.",
            "'{ref}' 制作时所用的基础模型 profile 此页面没有。可用 kedit_hub.apply('{ref}') 试用，它会自行测量。",
        ),
        "not_a_name": (
            "'{name}' is not the name of a patch on the Hub. Write user/repo or user/repo@v1.2.0; "
            "files and web addresses are not opened here.",
            "'{name}' 不是 Hub 上补丁的名称。请写 user/repo 或 user/repo@v1.2.0；此处不打开文件和网址。",
        ),
        # --- links ------------------------------------------------------------------------------------------------
        "link_made_here": (
            "'{name}' was made here and lies in your session alone, so a link cannot name it. Push it to the Hub and add it by "
            "its name, or take it out of the stack.",
            "'{name}' 是在此制作的，只存在于你的会话中，链接无法指向它。请把它推送到 Hub 再按名称添加，或从补丁栈中移除。",
        ),
        "link_long": (
            "This link has {count:,} characters in {name!r}; at most {most:,} are read.",
            "此链接的 {name!r} 有 {count:,} 个字符；最多读取 {most:,} 个。",
        ),
        "link_many": (
            "This link names {count} patches; at most {most} are stacked here.",
            "此链接包含 {count} 个补丁；此处最多叠加 {most} 个。",
        ),
        "link_strengths": (
            "This link has {count} strengths for {patches} patches.",
            "此链接为 {patches} 个补丁给出了 {count} 个强度。",
        ),
        "link_base": (
            "This link asks {base}; this page has {bases}.",
            "此链接要用 {base}；此页面有 {bases}。",
        ),
        "link_made_for": (
            "This link puts {name}, which was made for {made_for}, on {base}.",
            "此链接要把 {name} 用在 {base} 上，但它是为 {made_for} 制作的。",
        ),
        "link_precision": (
            "This link asks for the precision {precision}; this page has {precisions}.",
            "此链接要求的精度是 {precision}；此页面有 {precisions}。",
        ),
        "link_out": (
            "This link says {name}={said}; it has to lie in {least} to {most}.",
            "此链接中 {name}={said}；必须在 {least} 至 {most} 之间。",
        ),
        "link_not_whole": (
            "This link says {name}={said}, which is no whole number.",
            "此链接中 {name}={said}，这不是整数。",
        ),
        "link_says": ("This link says {name}={said}.", "此链接中 {name}={said}。"),
        "link_no_number": ("This link says {name}={said}, which is no number.", "此链接中 {name}={said}，这不是数字。"),
        "link_no_commit": (
            "This link names {name} without a commit, so what it means may have changed.",
            "此链接提到 {name} 但没有给出提交，其内容可能已改变。",
        ),
        "link_unknown": (
            "This link names a patch {name}, which this page does not have.",
            "此链接提到补丁 {name}，此页面没有它。",
        ),
        "link_stale": (
            "This link means another {name} ({digits}) than the one that is here ({here}): it has been made anew since.",
            "此链接所指的 {name}（{digits}）与这里的（{here}）不同：它后来被重新制作过。",
        ),
        # --- can a patch be believed ------------------------------------------------------------------------------
        "files": ("Files", "文件"),
        "files_bad": ("NOT as described: {error}", "与描述不符：{error}"),
        "files_good": (
            "{files}, with {tensors}: every digest was computed again and is right.",
            "{files}，含 {tensors}：每个摘要都已重新计算，全部正确。",
        ),
        "signature": ("Signature", "签名"),
        "unsigned": ("Not signed: nobody stands behind these files by name.", "未签名：没有人署名为这些文件负责。"),
        "signed_by": ("Signed by ", "签名者："),
        "and": (" and ", "、"),
        "as_version": (" as version {version}", "，版本 {version}"),
        "signed_for": (", for {repo}{version}.", "；用于 {repo}{version}。"),
        "signed_for_none": (", for no repo in particular{version}.", "；未限定仓库{version}。"),
        "policy": ("Policy", "策略"),
        "let_in": (
            "Let in by the trust policy of this page, {name}.",
            "已通过此页面的信任策略 {name}。",
        ),
        "provenance": ("Provenance", "来源"),
        "made_by": ("Its author says: made by {tool} {version}, ", "作者称：由 {tool} {version} 制作，"),
        "commit": ("commit ", "提交 "),
        "no_commit": ("no commit named", "未注明提交"),
        "dirty": (" with local changes", "（含本地改动）"),
        "from_sets": ("; edits from {sets}.", "；编辑来自 {sets}。"),
        "set_at": ("{name} at {revision}", "{name}（{revision}）"),
        "more_sets": ("{count} more", "另外 {count} 个"),
        "no_set": ("; no data set named.", "；未注明数据集。"),
        "base_bad": ("NOT the model it was made for: {error}", "不是制作它时所用的模型：{error}"),
        "base_is": ("{base}, {how}.", "{base}，{how}。"),
        "level_exact": (
            "recognised exactly: every value of the modules it changes is the same",
            "精确识别：它所改动的模块，每个数值都相同",
        ),
        "level_quantized": (
            "recognised through its quantization: the largest values agree, the others cannot be seen",
            "透过量化识别：最大的数值一致，其余无法看到",
        ),
        "level_shape": (
            "compared by shapes only: its quantization hides the values",
            "只比较了形状：量化隐藏了数值",
        ),
        "level_forced": ("not recognised, and taken by force", "未能识别，被强制采用"),
        "scores": ("Scores", "分数"),
        "scores_none": ("None came with it.", "没有附带分数。"),
        "scores_not_comparable": ("Cannot be checked: {reason}.", "无法核对：{reason}。"),
        "scores_bad": ("Do NOT follow from its recorded answers: {fault}.", "与其记录的回答不符：{fault}。"),
        "scores_good": (
            "Follow from {count:,} recorded answers. The answers may be invented: ask again.",
            "与 {count:,} 条记录的回答相符。回答可能是编造的：请重新提问。",
        ),
        "note": ("Author's note", "作者附注"),
        "note_probes": (
            "{mismatches:,} of {probes:,} probes answered differently on {where}",
            "在 {where} 上，{probes:,} 道测试题中有 {mismatches:,} 道回答不同",
        ),
        "note_good": (
            "The author says the scores reproduced: {probes}. That is a claim too.",
            "作者称分数已复现：{probes}。这同样只是一种声明。",
        ),
        "note_bad": ("The author says the scores did NOT reproduce: {probes}.", "作者称分数未能复现：{probes}。"),
        "measured_here": ("Measured here", "在此评测"),
        "measured_not": ("Not yet: ask its probes again.", "尚未：请重新提问它的测试题。"),
        "format": ("Format", "格式"),
        "format_version": ("Version {version}.", "版本 {version}。"),
        # --- the patch tab ----------------------------------------------------------------------------------------
        "module": ("Module", "模块"),
        "kind": ("Kind", "类型"),
        "tensor": ("Tensor", "张量"),
        "type_and_shape": ("Type and shape", "数据类型与形状"),
        "sha256": ("SHA-256", "SHA-256"),
        "patch_id": ("Patch id", "补丁 id"),
        "made_with": ("Made with", "制作方法"),
        "made_with_told": ("{method}, by {tool} {version}", "{method}，由 {tool} {version}"),
        "base_profile": ("Base profile", "基础模型 profile"),
        "seed_row": ("Seed", "随机种子"),
        "signer": ("Signed by", "签名者"),
        "tool_commit": ("Commit of the tool", "工具的提交"),
        "version_of": ("Version of {name}", "{name} 的版本"),
        "circumstance": ("Circumstance {name}", "环境 {name}"),
        "data_set_named": ("Data set {name}", "数据集 {name}"),
        "setting": ("Setting {name}", "设置 {name}"),
        "at_revision": (" at {revision}", "（{revision}）"),
        "card_told": (
            "{edits} of what {base}{revision} knows, made with {method}. A patch may be wrong, by mistake or on purpose: nobody has "
            "checked these facts.",
            "对 {base}{revision} 所知内容的 {edits}，用 {method} 制作。补丁可能是错的，或出于失误，或出于故意：没有人核实过这些事实。",
        ),
        "believed": ("Can it be believed?", "可以相信它吗？"),
        "edits": ("Edits", "编辑"),
        "head_prompt": ("Prompt", "提示"),
        "head_new_answer": ("New answer", "新答案"),
        "before": ("Before", "之前"),
        "after": ("After", "之后"),
        "head_probes": ("Probes", "测试题"),
        "scores_claimed": ("Scores it claims", "它声明的分数"),
        "provenance_settings": ("Provenance and settings", "来源与设置"),
        "what": ("What", "项目"),
        "value": ("Value", "值"),
        "no_patch_yet": ("There is no patch yet: make one.", "还没有补丁：请制作一个。"),
        "asking_probes": ("Asking its probes", "正在提问它的测试题"),
        "asking_undeclared": ("Asking what it does not declare", "正在提问它未声明的内容"),
        # --- measured again, and looked at ------------------------------------------------------------------------
        "probed_too_many": (
            "This patch has {count:,} edits; up to {most} are measured here. Measure it on your machine: kedit verify --rescore, "
            "kedit screen.",
            "此补丁有 {count:,} 条编辑；此处最多评测 {most} 条。请在你的机器上评测：kedit verify --rescore，kedit screen。",
        ),
        "probing_stopped": (
            "Stopped. Nothing was found out, for or against the patch.",
            "已停止。没有得出支持或不利于该补丁的结论。",
        ),
        "probing_slow": (
            "This took longer than {seconds:g} s and was ended; nothing was found out, for or against the patch. "
            "Measure it on your machine: {at_home}.",
            "用时超过 {seconds:g} 秒，已中止；没有得出支持或不利于该补丁的结论。请在你的机器上评测：{at_home}。",
        ),
        "reproduced": (
            "Reproduces its claims: yes. {probes:,} probes asked again, {differently:,} answered differently; none of {averages} averages "
            "is claimed too high.",
            "复现其声明：是。重新提问了 {probes:,} 道测试题，{differently:,} 道回答不同；{averages} 个平均值都没有虚高。",
        ),
        "reproduced_not": (
            "Reproduces its claims: NO. {probes:,} probes asked again, {differently:,} answered differently; {broken} of {averages} "
            "averages are claimed too high.",
            "复现其声明：否。重新提问了 {probes:,} 道测试题，{differently:,} 道回答不同；{averages} 个平均值中有 {broken} 个虚高。",
        ),
        "not_comparable": (
            "Reproduces its claims: cannot be compared: {reason}.",
            "复现其声明：无法比较：{reason}。",
        ),
        "came_without": (
            "Reproduces its claims: cannot be compared: it came without scores.",
            "复现其声明：无法比较：它没有附带分数。",
        ),
        "alone_on": ("{name}, alone on {base} at full precision.", "{name}，单独用于全精度的 {base}。"),
        "scores_otherwise": ("Scores that came out otherwise", "结果不同的分数"),
        "probes_otherwise": ("Probes that came out otherwise", "结果不同的测试题"),
        "claimed": ("Claimed", "声明"),
        "measured": ("Measured", "实测"),
        "claim_kept": ("Kept", "成立"),
        "head_probe": ("Probe", "测试题"),
        "head_role": ("Role", "类别"),
        "head_protocol": ("Protocol", "协议"),
        "not_compared": ("Not compared", "未比较"),
        "other_circumstance": ("Other {name}", "{name} 不同"),
        "then_now": ("{was} then, {now} now", "当时 {was}，现在 {now}"),
        "all_averages": ("All {count} averages", "全部 {count} 个平均值"),
        "circumstances": ("Circumstances", "环境"),
        "how": ("How", "情况"),
        "effects_none": (
            "Found: nothing beyond what this patch declares, among these questions.",
            "结果：在这些问题中，没有发现超出该补丁声明的影响。",
        ),
        "effects_1": (
            "Found: {count:,} effect beyond what this patch declares, or short of it.",
            "结果：发现 {count:,} 处影响超出或未达到该补丁的声明。",
        ),
        "effects_n": (
            "Found: {count:,} effects beyond what this patch declares, or short of it.",
            "结果：发现 {count:,} 处影响超出或未达到该补丁的声明。",
        ),
        "effects_looked": (
            "Looked at: {name} alone, with {questions:,} questions asked with and without it, {rows:,} stored vectors and "
            "{texts:,} ordinary texts, drawn by seed {seed}; another look draws others. Nothing found is no proof: what was not "
            "asked is not known, and two patches may do together what neither does alone.",
            "检查范围：单独的 {name}，{questions:,} 个问题在带与不带它时各问一次，{rows:,} 个存储向量，{texts:,} 段普通文本，"
            "按随机种子 {seed} 抽取；再查一次会抽到别的。没有发现不等于证明：没有问到的就不知道，"
            "而且两个补丁合在一起可能产生各自都没有的影响。",
        ),
        "head_look": ("Look", "检查"),
        "look_result": ("What came of it", "结果"),
        "looked_at": ("What was looked at", "检查了什么"),
        "where": ("Where", "位置"),
        "without_it": ("Without it", "不带补丁"),
        "with_it": ("With it", "带补丁"),
        # --- make -------------------------------------------------------------------------------------------------
        "all_took": ("All {count} edits took.", "全部 {count} 条编辑均已生效。"),
        "now_answers": ("The model now answers “{target}”.", "模型现在回答“{target}”。"),
        "made_in": (" Made in {seconds:.1f} s.", "用时 {seconds:.1f} 秒。"),
        "not_all_took": ("Not all edits took. See the scores below.", "并非所有编辑都生效。见下方分数。"),
        "not_fully": (
            "The edit did not fully take: it should say “{target}”. See the scores below.",
            "编辑没有完全生效：应当回答“{target}”。见下方分数。",
        ),
        "value_found": ("Search for the value: succeeded.", "值的搜索：成功。"),
        "value_not_found": ("Search for the value: failed.", "值的搜索：失败。"),
        "said_before": ("Before:", "之前："),
        "said_after": ("After:", "之后："),
        "made_patch": (
            "Patch {name}, {count} module changed beside the base.",
            "补丁 {name}，在基础模型之外改动 {count} 个模块。",
        ),
        "questions_asked": ("{count} questions asked", "提问了 {count} 个问题"),
        "neighbours_kept": (
            ", {kept} of {count} neighbouring answers unchanged",
            "，{count} 个相邻问题中有 {kept} 个回答不变",
        ),
        "no_neighbours_known": (", no neighbours known", "，没有已知的相邻问题"),
        "asked": ("Question", "问题"),
        "file": ("File", "文件"),
        "size": ("Size", "大小"),
        "bytes": ("{count:,} bytes", "{count:,} 字节"),
        "no_file": (
            "There is no file yet. Drop one into the box, or choose one.",
            "还没有文件。请把文件拖入框中，或选择一个。",
        ),
        "make_first": ("Make a patch first.", "请先制作一个补丁。"),
        "in_stack": (
            "It is in your stack, on the first tab, until you leave the page.",
            "它已在第一个标签页的补丁栈中，离开页面前一直保留。",
        ),
        "not_logged_in": (
            "You are not logged in. Log in with the button above.",
            "你尚未登录。请用上方的按钮登录。",
        ),
        "proposed": ("Proposed as a pull request: {url}", "已作为拉取请求提交：{url}"),
        "pushed": ("Pushed to {url} at commit {commit}.", "已推送到 {url}，提交 {commit}。"),
        "no_login": (
            "Pushing needs a login. Download the zip, unpack it, and push it from your machine: "
            "kedit_hub.push(kedit_hub.Patch.load(folder), 'user/name').",
            "推送需要登录。请下载 zip 并解压，再从你的机器推送：kedit_hub.push(kedit_hub.Patch.load(folder), 'user/name')。",
        ),
        "making_stopped": ("Stopped. No patch was made.", "已停止。没有制作补丁。"),
        "making_slow": (
            "This took longer than {seconds:g} s and was ended; no patch was made. Give fewer edits, choose another method, or make it "
            "on your machine: kedit edit.",
            "用时超过 {seconds:g} 秒，已中止；没有制作补丁。请减少编辑、换一种方法，或在你的机器上制作：kedit edit。",
        ),
        "loading_base": ("Loading the base", "正在加载基础模型"),
        "looking_value": ("{method}: looking for the value", "{method}：正在寻找值"),
        "looking_values": ("{method}: looking for {count} values", "{method}：正在寻找 {count} 个值"),
        "before_after": ("Before and after", "前后对比"),
        "file_large": (
            "The file has {size:,} bytes; at most {most:,} are read here. On your machine: kedit edit.",
            "文件有 {size:,} 字节；此处最多读取 {most:,} 字节。可在你的机器上使用：kedit edit。",
        ),
        "file_empty": (
            "The file holds no edit; 1 to {most} edits are made here at once.",
            "文件中没有编辑；此处一次可制作 1 至 {most} 条。",
        ),
        "file_many": (
            "The file holds more than {most} edits; at most so many are made here at once.",
            "文件中的编辑超过 {most} 条；此处一次最多制作这么多。",
        ),
        "edit_long": (
            "Edit {number} of the file is too long: at most {prompt} characters of a prompt and {target} of a target.",
            "文件中第 {number} 条编辑过长：提示最多 {prompt} 个字符，答案最多 {target} 个。",
        ),
        "edit_many_probes": (
            "Edit {number} of the file has {count} questions; at most {most} are asked here.",
            "文件中第 {number} 条编辑有 {count} 个问题；此处最多提问 {most} 个。",
        ),
        "base_closed": (
            "No patches can be made on {base!r} here; make one on your machine: kedit_hub.edit.",
            "此处不能在 {base!r} 上制作补丁；请在你的机器上制作：kedit_hub.edit。",
        ),
        "policy_closed": (
            "The trust policy of this page, {name}, takes no patch that nobody has signed or published, so none can be "
            "tried here. Make one on your machine: kedit_hub.edit.",
            "此页面的信任策略 {name} 不接受无人签名或发布的补丁，因此无法在此试用。请在你的机器上制作：kedit_hub.edit。",
        ),
        "the_prompt": ("The prompt", "提示"),
        "the_subject": ("The subject", "主语"),
        "the_new_answer": ("The new answer", "新答案"),
        "the_relation": ("The relation", "关系"),
        "the_paraphrase": ("Paraphrase {number}", "第 {number} 条改述"),
        "field_long": (
            "{field} has {count:,} characters; at most {most} are taken here.",
            "{field}有 {count:,} 个字符；此处最多接受 {most} 个。",
        ),
        "field_empty": ("{field} is empty. Fill it in, or click an example.", "{field}为空。请填写，或点击一个例子。"),
        "many_paraphrases": (
            "There are {count} paraphrases; at most {most} are taken here.",
            "有 {count} 条改述；此处最多接受 {most} 条。",
        ),
        # --- conflicts --------------------------------------------------------------------------------------------
        "conflicts_empty": (
            "Choose two or more patches, or take those of your stack: then it is told here how they get in each other's way.",
            "请选择两个或更多补丁，或使用你的补丁栈：这里会说明它们如何互相妨碍。",
        ),
        "other_bases": (
            "These patches were made for different bases, and cannot be stacked.",
            "这些补丁是为不同的基础模型制作的，不能叠加。",
        ),
        "conflicts_many": (
            "These patches have {count:,} edits; conflicts of up to {most:,} are looked for here. On your machine: {at_home}.",
            "这些补丁有 {count:,} 条编辑；此处最多在 {most:,} 条中查找冲突。可在你的机器上使用：{at_home}。",
        ),
        "conflicts_no_profile": (
            "None of these patches has a base profile here, so they are not composed for every question.",
            "这些补丁在此都没有基础模型 profile，因此不会针对每个问题组合它们。",
        ),
        "conflicts_refused": (
            "As they are, these patches are refused: they disagree, and nothing says which of them answers. What is said here holds when "
            "the patch chosen last does.",
            "这些补丁目前被拒绝：它们互相矛盾，又没有指定由哪一个回答。以下内容以最后选择的补丁回答为前提。",
        ),
        "conflicts_found": ("Found: {kinds}.", "发现：{kinds}。"),
        "conflicts_none": ("Nothing was found.", "没有发现冲突。"),
        "conflicts_label": ("Conflicts found", "发现的冲突"),
        "overlap": ("Heat map of the overlap of the chosen patches", "所选补丁重叠程度的热力图"),
        "part_textual": ("words", "文字"),
        "part_geometric": ("keys", "键"),
        "part_gate": ("gate", "门控"),
        "part_behavioural": ("behaviour", "行为"),
        "conflicts_questions": (
            ", {count:,} questions asked in mode {mode}",
            "，在模式 {mode} 下提问了 {count:,} 个问题",
        ),
        "conflicts_others": (" and {count} more", " 等，另有 {count} 个"),
        "conflicts_looked": ("Looked at: {parts} of {patches}{asked}.", "检查了 {patches} 的{parts}{asked}。"),
        "conflicts_not_looked": (" Not looked at: {parts}.", "没有检查：{parts}。"),
        "head_what": ("What", "内容"),
        "column_part": ("part", "部分"),
        "column_kind": ("kind", "类型"),
        "column_patches": ("patches", "补丁"),
        "column_what": ("what", "内容"),
        "column_numbers": ("numbers", "数值"),
        "column_remedy": ("remedy", "处理办法"),
        "numbers": ("Numbers", "数值"),
        "what_to_do": ("What to do", "处理办法"),
        "this_pair": ("This pair", "这一对"),
        "first_second": ("First: {first}. Second: {second}.", "第一个：{first}。第二个：{second}。"),
        "taken_out": ("{name} was taken out of your stack.", "已从你的补丁栈中移除 {name}。"),
        "pinned_now": (
            "{name} is pinned in your stack: where the two disagree, it answers.",
            "{name} 已在你的补丁栈中设为优先：两者矛盾时由它回答。",
        ),
        # --- measure ----------------------------------------------------------------------------------------------
        "suite_before_after": ("before and after", "前后对比"),
        "suite_retention": ("retention", "保持率"),
        "suite_drift": ("drift", "漂移"),
        "no_suite": (
            "There is no suite {suite!r}. Choose one of {suites}.",
            "没有测试 {suite!r}。请从以下选择：{suites}。",
        ),
        "measure_none": (
            "No patch is chosen. Choose some above, or take those of your stack.",
            "没有选择补丁。请在上方选择，或使用你的补丁栈。",
        ),
        "measure_many": (
            "These patches have {count:,} edits; up to {most} are measured here. On your machine: {at_home}.",
            "这些补丁有 {count:,} 条编辑；此处最多评测 {most} 条。可在你的机器上使用：{at_home}。",
        ),
        "measure_slow": (
            "This took longer than {seconds:g} s and was ended. On your machine: {at_home}.",
            "用时超过 {seconds:g} 秒，已中止。可在你的机器上使用：{at_home}。",
        ),
        "measured_how": (
            "Measured at precision {precision}, in mode {mode}{strengths}{winner}.",
            "评测条件：精度 {precision}，模式 {mode}{strengths}{winner}。",
        ),
        "measured_whole": ("; every patch at full strength", "；每个补丁均为全强度"),
        "measured_strengths": ("; at strengths other than 1: {strengths}", "；强度不为 1 的：{strengths}"),
        "measured_latest": ("; where they disagree, the last one answers", "；互相矛盾时由最后一个回答"),
        "measured_pinned": ("; where they disagree, answered by {names}", "；互相矛盾时由 {names} 回答"),
        "plot_before_after": (
            "Edits answered as wanted: base (hollow), stack (full)",
            "按要求回答的编辑：基础模型（空心）、补丁栈（实心）",
        ),
        "plot_retention": ("Share answered as wanted, as patches go on", "随着补丁增加，按要求回答的比例"),
        "plot_drift": ("Drift on ordinary text, KL in nats a token", "普通文本上的漂移：每词元 KL（nats）"),
        "head_patch": ("Patch", "补丁"),
        "head_generalization": ("Generalization", "泛化"),
        "head_locality": ("Locality", "局部性"),
        "head_patches": ("Patches", "补丁数"),
        "head_last": ("Last one put on", "最后加上的"),
        "head_all": ("All edits", "全部编辑"),
        "head_first": ("The first patch", "第一个补丁"),
        "head_neighbours": ("Neighbours kept", "相邻问题不变"),
        "head_kl": ("KL", "KL"),
        "head_ppl": ("Perplexity", "困惑度"),
        "head_ppl_base": ("Perplexity of the base", "基础模型的困惑度"),
        "averages_by_protocol": ("All averages, by protocol", "全部平均值，按协议"),
        "percent_measured": ("{percent:.0f} % measured …", "已评测 {percent:.0f} %……"),
        # --- find -------------------------------------------------------------------------------------------------
        "limit_out": ("limit is {limit}; it has to lie in 1 to {most}.", "limit 为 {limit}；必须在 1 至 {most} 之间。"),
        "one_field_long": (
            "One field has {count:,} characters; at most {most} are taken here.",
            "有一栏含 {count:,} 个字符；此处最多接受 {most} 个。",
        ),
        "no_match": (
            "Nothing on the Hub matches. Patches carry the tag kedit; fewer words find more.",
            "Hub 上没有匹配的补丁。补丁带有标签 kedit；少用几个词可找到更多。",
        ),
        "repo": ("Repo", "仓库"),
        "author_base": ("Base, says its author", "基础模型（作者所述）"),
        "head_method": ("Method", "方法"),
        "changed": ("Changed", "更新"),
        "downloads": ("Downloads", "下载量"),
        "commit_head": ("Commit", "提交"),
        "found_told": (
            "{patches}, the newest first. Nothing was downloaded, and nothing checked.",
            "{patches}，最新的在前。没有下载任何内容，也没有核实。",
        ),
        "found_label": ("Patches found", "找到的补丁"),
        "find_empty": (
            "Search patches on the Hub, or add one by its name on the first tab.",
            "在 Hub 上搜索补丁，或在第一个标签页按名称添加。",
        ),
        "found_in_stack": ("It is in your stack, on the first tab.", "它已在第一个标签页的补丁栈中。"),
        "found_other_base": (
            "It was made for {base}: choose that base.",
            "它是为 {base} 制作的：请选择该基础模型。",
        ),
        # --- the leaderboard --------------------------------------------------------------------------------------
        "board_at": ("{repo} at commit {commit}: {rows}.", "{repo}，提交 {commit}：{rows}。"),
        "rows_1": ("{count:,} row", "{count:,} 行"),
        "rows_n": ("{count:,} rows", "{count:,} 行"),
        "board_no_match": ("No run here matches.", "没有匹配的评测记录。"),
        "board_empty": ("Nothing has been submitted yet. Below is how.", "还没有人提交。提交方法见下方。"),
        "more_rows": ("and {count:,} more rows.", "另有 {count:,} 行。"),
        "more_rankings": (
            "and {count:,} more rankings: choose a base or a suite.",
            "另有 {count:,} 个排名：请选择基础模型或测试。",
        ),
        "board_without": (
            "{count:,} run(s) do not have this average, and so no place.",
            "{count:,} 条评测记录没有这项平均值，因此没有名次。",
        ),
        "the_rest": ("the rest", "其余"),
        "left_out_1": ("{count:,} file left out", "略去 {count:,} 个文件"),
        "left_out_n": ("{count:,} files left out", "略去 {count:,} 个文件"),
        "why_left_out": ("Why it does not count", "不计入的原因"),
        "left_out_label": ("Files that are left out", "略去的文件"),
        "every_base": ("every base", "所有基础模型"),
        "every_data_set": ("every data set", "所有数据集"),
        "every_suite": ("every suite", "所有测试"),
        "board_name_one": (
            "Name a leaderboard: a dataset repo of the Hub, user/board. Below is how to begin one.",
            "请写出排行榜的名称：Hub 上的数据集仓库 user/board。下方说明如何新建一个。",
        ),
        # --- about ------------------------------------------------------------------------------------------------
        "no_patch_taken": ("No patch is taken here: {error}", "此处不接受任何补丁：{error}"),
        "no_policy": (
            "No trust policy is in force here: a patch of anybody can be added.",
            "此处没有启用信任策略：任何人的补丁都可以添加。",
        ),
        "policy_in_force": (
            "Trust policy in force here: {name}. It takes {wants}.",
            "此处启用的信任策略：{name}。它接受：{wants}。",
        ),
        "or_rule": ("; or ", "；或"),
        "more_rules": ("{count} more rules", "另外 {count} 条规则"),
        "nobodys": ("nobody's patches", "无（不接受任何人的补丁）"),
        "rule_any_base": ("any base", "任何基础模型"),
        "or": (" or ", " 或 "),
        "rule_signed": ("signed by {names}", "由 {names} 签名"),
        "rule_repo": ("from a Hub repo of {names}", "来自 {names} 的 Hub 仓库"),
        "rule": ("patches for {base}, {wants}", "用于 {base}、{wants}的补丁"),
    }
)


class Both(str):
    """A sentence in English that knows its Chinese."""

    chinese: str


def language_of(request: gr.Request | None) -> Language:
    """Chinese for whoever asks for it first of all, as Gradio chooses the labels; else English. None: a call without a browser."""
    header = "" if request is None else str(request.headers.get("accept-language") or "")
    return "zh" if re.match(r"\s*zh\b", header[:MAX_HEADER], re.IGNORECASE) else "en"


def told(language: Language, key: str, /, **values: object) -> str:
    """A sentence, with what stands in its places: exactly those it has. Plain text; KeyError, which no visitor can cause."""
    if key not in SENTENCES:
        raise KeyError(f"there is no sentence {key!r} in space/sentences.py")
    sentence = SENTENCES[key][language == "zh"]
    if set(values) != places(SENTENCES[key][0]) | places(SENTENCES[key][1]):
        raise KeyError(f"the sentence {key!r} has other places than {sorted(values)}")
    return sentence.format(**{name: spoken(language, value) for name, value in values.items()})


def counted(language: Language, key: str, count: int) -> str:
    """ "1 patch", "2 patches"."""
    return told(language, f"{key}_1" if count == 1 else f"{key}_n", count=count)


def both(key: str, /, **values: object) -> Both:
    """A sentence in both languages at once."""
    made = Both(told("en", key, **values))
    made.chinese = told("zh", key, **values)
    return made


def spoken(language: Language, value: T) -> T | str:
    """What is in both languages in this one, anything else as it is."""
    return value.chinese if language == "zh" and isinstance(value, Both) else value


def message(language: Language, error: Exception) -> str:
    """What an error says: of this page in the language, of the library in its own."""
    said = error.args[0] if error.args and isinstance(error.args[0], Both) else str(error)
    return spoken(language, said)


def places(sentence: str) -> set[str]:
    """Names of the places in a sentence."""
    return set(re.findall(r"\{(\w+)", sentence))
