"""Code to take home: the same answer, or the same stack as a LoRA, on a machine of one's own. Law: what is printed runs as it stands."""

import shlex

from space.asking import Question
from space.state import Held

LORA = "kedit-lora"  # the folder an export is written to


def python(question: Question, endpoint: str | None = None) -> str:
    """Two lines of Python that give the patched answer. endpoint: of the hub of this page, None for the usual one."""
    asked = repr(question.text.strip())
    if question.max_new_tokens != 32:
        asked += f", max_new_tokens={question.max_new_tokens}"
    return f"import kedit_hub\nprint(kedit_hub.apply({', '.join(_arguments(question, endpoint))}).ask({asked}))"


def _arguments(question: Question, endpoint: str | None) -> list[str]:
    if question.conflicts == "pin":
        places = [_loaded(held, endpoint) for held in question.patches]
        pinned = [name[:12] for name in question.pinned]
        arguments = [f"kedit_hub.PatchStack([{', '.join(places)}], conflicts='pin', pinned={pinned!r})"]
    else:
        places = [_place(held, endpoint) for held in question.patches]
        arguments = [places[0] if len(places) == 1 else f"[{', '.join(places)}]"]
    if not places:
        arguments.append(f"model={question.base!r}")
    if question.precision != "float32":
        arguments.append(f"quantization={question.precision!r}")
    if question.conflicts == "latest":
        arguments.append("conflicts='latest'")
    if question.mode != "auto":
        arguments.append(f"mode={question.mode!r}")
    shares = {name[:12]: share for name, share in question.strengths if share != 1}
    if shares:
        arguments.append(f"strengths={shares!r}")
    return arguments


def _place(held: Held, endpoint: str | None) -> str:
    if held.origin == "hub" and endpoint is not None:
        return f"kedit_hub.pull({held.where!r}, endpoint={endpoint!r})"
    return repr(held.where)


def _loaded(held: Held, endpoint: str | None) -> str:
    """As a Patch, which is what a stack is made of."""
    if held.origin == "hub":
        return f"kedit_hub.pull({held.where!r})" if endpoint is None else _place(held, endpoint)
    return f"kedit_hub.Patch.load({held.where!r})"


def shell(question: Question, endpoint: str | None = None) -> str:
    """Command lines: the same question, then the stack as a LoRA for PEFT and for inference servers."""
    if not question.patches:
        return f"kedit ask {shlex.quote(question.text.strip())} --base {question.base}"
    if question.conflicts == "pin":
        return "# a pinned stack is said in Python, or kept in a kedit.lock: kedit stack add, kedit stack pin"
    hub = "" if endpoint is None else f"HF_ENDPOINT={endpoint} "
    shares = dict(question.strengths)
    strengths = [f"--strength {shares.get(held.patch.id, 1.0):g}" for held in question.patches]
    common = [
        *(strengths if any(share != 1 for share in shares.values()) else []),
        *(["--conflicts latest"] if question.conflicts == "latest" else []),
    ]
    ask = [
        f"{hub}kedit ask {shlex.quote(question.text.strip())}",
        *(f"--patch {shlex.quote(held.where)}" for held in question.patches),
        *common,
        *([f"--quantization {question.precision}"] if question.precision != "float32" else []),
        *([f"--mode {question.mode}"] if question.mode != "auto" else []),
        *([f"--max-new-tokens {question.max_new_tokens}"] if question.max_new_tokens != 32 else []),
    ]
    export = [f"{hub}kedit export", *(shlex.quote(held.where) for held in question.patches), *common]
    return "\n".join(
        [
            " ".join(ask),
            "# as a LoRA; the gate stays behind, and its README says what that costs",
            " ".join([*export, "--format serving", f"--out {LORA}"]),
            f"# peft.PeftModel.from_pretrained(base, '{LORA}'), or:",
            f"# vllm serve {question.base} --enable-lora --lora-modules kedit={LORA}",
        ]
    )
