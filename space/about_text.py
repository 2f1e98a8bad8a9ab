"""What the About tab says, in Markdown."""

ENGLISH = """
## What this is

An edit to a language model ("the capital of X is now Y") becomes a small, versioned **patch**: tensors, the edits in
words, scores. A patch never touches the base model's weights; it hangs beside them and comes off without a trace.
Patches of different people can be stacked on one base, contradictions between them are found before anything runs, and
any one can be taken out again: the model is then the one that never had it.

This page shows it on **Atlas**, a small model of a small world of geography and culture, so that everything
happens in seconds on an ordinary processor. The same calls work on larger models on your own machine:

```python
import kedit_hub

m = kedit_hub.apply(["user/patch", "another/patch@v1.2.0"], quantization="nf4")
m.ask("The capital of France is")
```

## What to expect

- The model is tiny. It knows its world and nothing else; ask it in the forms that the examples show.
- An edit changes answers to a question and its rephrasings. What should follow from the new fact (the country of a new
  city, the language spoken there) mostly does not change with it.
- Scores are always named with their protocol: `tf-token` gives the model the true answer so far and looks at the next
  token; `generate` lets it speak, which is what you see here and is harder.
- "KL" says how far the patches moved the distribution of the next token, in nats. Zero: they did nothing there.
- Patches you make here live in your session only. Download them, or they are gone when you leave.

## Editing is also a known attack

The method that corrects a fact also plants a false one, or a hidden trigger, in a model that looks unchanged otherwise
(PoisonGPT, 2023; BadEdit, arXiv 2403.13355; Can Editing LLMs Inject Harm, arXiv 2407.20224). Therefore:

- Loading a patch runs no code: only bounded JSON and safetensors are read, and every tensor is hashed.
- A patch says which model it was made for, and is refused on any other.
- It may be signed. A signature says who stands behind the files, and for which repo and version; not that they are true.
- Its scores are held against its recorded answers, and can be measured again, on the Patch tab and with `kedit verify`.
  They show what a patch does to its own probes; **no score shows that a patch is harmless**, and nobody has checked that
  its facts are true.
- A look for undeclared effects asks questions that the patch says nothing about. It finds what its questions reach;
  **nothing found is no proof**.
- Apply patches of people you have reason to trust, pin them to a commit, and read the edits before you do.
"""

CHINESE = """
## 这是什么

对语言模型的一次编辑（“X 的首都现在是 Y”）会成为一个带版本的小**补丁**：张量、文字形式的编辑、分数。补丁从不触碰基础模型的权重；\
它挂在权重旁边，取下后不留痕迹。不同的人制作的补丁可以叠加在同一个基础模型上，它们之间的矛盾在运行之前就会被发现，\
其中任何一个都可以再取出来：此时的模型就等同于从未带过它的模型。

此页面用 **Atlas** 演示，它是一个关于地理与文化小世界的小模型，因此在普通处理器上几秒内就能完成一切。\
同样的调用在你自己的机器上也适用于更大的模型：

```python
import kedit_hub

m = kedit_hub.apply(["user/patch", "another/patch@v1.2.0"], quantization="nf4")
m.ask("The capital of France is")
```

## 可以期待什么

- 这个模型很小。它只了解自己的世界，别无其他；请按例子的形式用英文提问。
- 一次编辑会改变对一个问题及其改述的回答。由新事实本应推出的内容（新城市所在的国家、当地使用的语言）大多不会随之改变。
- 分数总是注明协议：`tf-token` 把到目前为止的正确答案给模型，看它的下一个词元；`generate` 让它自己说，\
这正是你在此看到的方式，也更难。
- “KL” 表示补丁使下一个词元的分布移动了多远，单位为 nats。零：它们在那里没有作用。
- 你在此制作的补丁只存在于你的会话中。请下载它们，否则离开后就没有了。

## 编辑也是一种已知的攻击手段

能改正事实的方法，也能在一个其他方面看不出变化的模型中植入虚假事实或隐藏的触发器\
（PoisonGPT，2023；BadEdit，arXiv 2403.13355；Can Editing LLMs Inject Harm，arXiv 2407.20224）。因此：

- 载入补丁不运行任何代码：只读取大小受限的 JSON 与 safetensors，并对每个张量计算哈希。
- 补丁写明它是为哪个模型制作的，用在其他模型上会被拒绝。
- 它可以带签名。签名说明谁为这些文件负责、用于哪个仓库和版本；并不说明内容属实。
- 它的分数会与其记录的回答核对，并可在“补丁”标签页或用 `kedit verify` 重新评测。\
分数只说明补丁对它自己的测试题有什么作用；**没有任何分数能证明补丁无害**，也没有人核实过它的事实是否属实。
- 查找未声明的影响，是提出补丁没有提到的问题。它只能发现这些问题触及的内容；**没有发现不等于证明**。
- 请只使用你有理由信任的人的补丁，固定到某个提交，并在使用前阅读其中的编辑。
"""
