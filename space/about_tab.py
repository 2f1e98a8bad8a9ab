"""About: what this is, what it cannot do, that editing is also a known attack, and whose patches this page takes."""

import gradio as gr

from kedit_hub.errors import TrustError
from kedit_hub.patch.trust import Rule, TrustPolicy
from space import html
from space.sentences import Language, language_of, told
from space.state import policy
from space.words import say

SHOWN_RULES = 5


def build(tab: gr.Tab) -> None:
    """The tab. The policy is read anew whenever somebody looks."""
    gr.Markdown(say("about"), elem_id="about")
    shown = gr.HTML(elem_id="policy")
    tab.select(in_force, None, shown, api_visibility="private", show_progress="hidden")


def in_force(request: gr.Request | None = None) -> str:
    """The trust policy of this page in one line: the name of its file, never its path, and what it wants."""
    language = language_of(request)
    try:
        found = policy()
    except TrustError as error:
        return html.note("error", told(language, "no_patch_taken", error=error))
    if found is None:
        return html.note("info", told(language, "no_policy"))
    return html.note("info", told(language, "policy_in_force", name=found[0], wants=wants(found[1], language)))


def wants(trust: TrustPolicy, language: Language = "en") -> str:
    """What lets a patch in, rule by rule."""
    rules = [_wants(language, rule) for rule in trust.rules[:SHOWN_RULES]]
    more = len(trust.rules) - len(rules)
    named = [*rules, *([told(language, "more_rules", count=more)] if more > 0 else [])]
    return told(language, "or_rule").join(named) or told(language, "nobodys")


def _wants(language: Language, rule: Rule) -> str:
    either = told(language, "or")
    base = told(language, "rule_any_base") if rule.base == "*" else rule.base
    signed = [told(language, "rule_signed", names=either.join(rule.signers))] if rule.signers else []
    repo = [told(language, "rule_repo", names=either.join(rule.authors))] if rule.authors else []
    return told(language, "rule", base=base, wants=told(language, "and").join([*signed, *repo]))
