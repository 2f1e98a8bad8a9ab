"""Whom to believe: `trust check`, `trust new`, `trust forget`."""

from pathlib import Path
from typing import Annotated, assert_never

import typer

from kedit_hub.commands.options import AsJson, EndpointOption, PatchRef, TrustOption
from kedit_hub.commands.output import print_fields, print_json, print_table, say


def check(patch: PatchRef, trust: TrustOption = None, as_json: AsJson = False) -> None:
    """Say rule by rule why a patch is trusted or not. Exits 1 when it is not."""
    from kedit_hub.api import author_for, fetch
    from kedit_hub.errors import TrustError
    from kedit_hub.patch.trust import VARIABLE, Distrusted, Trusted, policy_of

    policy = policy_of(trust)
    if policy is None:
        raise TrustError(
            f"there is no policy to check {patch!r} against: pass --trust FILE, or name the file in {VARIABLE}."
        )
    found = fetch(patch)
    author = author_for(policy, found)
    verdict = policy.judge(found.patch, author)
    about = {"id": found.patch.id, "base": found.patch.manifest.base.id, "author": author}
    if as_json:
        print_json(
            {
                "patch": patch,
                **about,
                "signers": list(found.patch.signers),
                "trusted": isinstance(verdict, Trusted),
                "reasons": [vars(reason) for reason in verdict.reasons],
            }
        )
    else:
        print_fields({**about, "signers": policy.names(found.patch.signers)})
        print()
        rows = [(reason.rule, "yes" if reason.holds else "no", reason.why) for reason in verdict.reasons]
        print_table(("rule", "holds", "why"), rows)
    match verdict:
        case Trusted(rule=rule):
            say(f"Trusted by rule {rule}. Trusted is not the same as true: read what the patch says.")
        case Distrusted():
            policy.require(found.patch, author)
        case _:
            assert_never(verdict)


def new(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="A new file; one that is there is kept.")],
    key: Annotated[
        list[str] | None,
        typer.Option("--key", metavar="NAME=HEX", help="Trust the signatures of this public key; repeatable."),
    ] = None,
    author: Annotated[
        list[str] | None,
        typer.Option("--author", metavar="NAME", help="Trust the Hub repos of this user or organization; repeatable."),
    ] = None,
    base: Annotated[
        str, typer.Option("--base", metavar="ID", help="Only for patches of this base, org/model. By default of any.")
    ] = "*",
    as_json: AsJson = False,
) -> None:
    """Write a trust policy of one rule. With keys and authors, a patch needs one of each."""
    keys: dict[str, str] = {}
    for pair in key or []:
        name, equals, value = pair.partition("=")
        if not equals or not name or not value or name in keys:
            raise typer.BadParameter(f"'{pair}' is not a new NAME=HEX", param_hint="'--key'")
        keys[name] = value
    if not keys and not author:
        raise typer.BadParameter("name whom to trust by --key or --author: a rule without both would trust everybody")
    from kedit_hub.patch.trust import Rule, TrustPolicy

    rule = Rule(base=base, signers=tuple(keys), authors=tuple(author or ()))
    policy = TrustPolicy(keys=keys, rules=(rule,))
    file = policy.save(out)
    if as_json:
        print_json({"file": str(file), "keys": keys, "rules": [rule.model_dump(mode="json")]})
    else:
        print_fields({"file": file, "base": rule.base, "signers": rule.signers, "authors": rule.authors})
    say(f"Use it:  kedit trust check PATCH --trust {file}  or, for everything:  export KEDIT_TRUST={file.absolute()}")


def forget(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="user/repo.")],
    endpoint: EndpointOption = None,
    as_json: AsJson = False,
) -> None:
    """Forget who signed a repo. Its next pull is believed as a first one."""
    from kedit_hub.hub.seen import forget as forget_repo

    known = forget_repo(endpoint, repo)
    if as_json:
        print_json({"repo_id": repo, "forgotten": known})
    else:
        print_fields({"repo_id": repo, "forgotten": "yes" if known else "nothing was remembered"})
