"""Sharing: `push`, `pull`, and the hub: `hub serve`, `hub find`."""

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from kedit_hub.commands.options import AsJson, EndpointOption, TokenFileOption, TrustOption, number, token_for
from kedit_hub.commands.output import print_fields, print_json, print_table, say


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a patch.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="user/repo; it is made when it is not there.")],
    version: Annotated[str | None, typer.Option("--version", help="Tag it, like v1.0.0. A tag never moves.")] = None,
    pr: Annotated[bool, typer.Option("--pr", help="Propose it as a pull request to somebody else's repo.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repo private.")] = False,
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    as_json: AsJson = False,
) -> None:
    """Put a patch into a repo of the Hub, as one commit."""
    import kedit_hub

    pushed = kedit_hub.push(
        kedit_hub.Patch.load(folder),
        repo,
        version=version,
        create_pr=pr,
        private=private,
        token=token_for(endpoint, token_file),
        endpoint=endpoint,
    )
    if as_json:
        print_json(vars(pushed))
    else:
        print_fields(vars(pushed))
    say(f"Others load it with:  kedit pull {repo}@{pushed.tag or pushed.commit}")


def pull(
    ref: Annotated[str, typer.Argument(metavar="REF", help="user/repo, or user/repo@ a tag, branch or commit.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Write the patch there. By default only to the cache."),
    ] = None,
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    trust: TrustOption = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a patch from the Hub and check it. It then works offline too."""
    from kedit_hub.api import admit
    from kedit_hub.hub.ref import HubRef, parse_ref
    from kedit_hub.hub.repo import resolve

    token = token_for(endpoint, token_file)
    pinned, name = resolve(ref, token=token, endpoint=endpoint), parse_ref(ref)
    # a commit that was asked for stays one that was asked for: it may be an old one
    asked = name if isinstance(name, HubRef) and name.is_pinned else pinned
    patch = admit(asked, trust, token=token, endpoint=endpoint).patch
    folder = None if out is None else str(patch.save(out, pinned.repo_id))
    found = {"repo_id": pinned.repo_id, "commit": pinned.revision, "id": patch.id, "folder": folder}
    if as_json:
        print_json(found)
    else:
        print_fields(found)


def serve(
    root: Annotated[
        Path | None,
        typer.Option(
            "--root", metavar="FOLDER", help="Where the hub keeps everything. By default ~/.cache/kedit_hub/hub."
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", parser=number(int, 0, 65535), metavar="N", help="The port; 0 takes a free one.")
    ] = 8471,
    user: Annotated[
        list[str] | None, typer.Option("--user", metavar="NAME", help="A user who may push; repeatable. By default me.")
    ] = None,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Listen for other machines too. Nothing is encrypted.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Serve a development hub until Ctrl-C. For `push` and `pull` without an account or a network."""
    from kedit_hub.home import home
    from kedit_hub.hub.localhub import serve as serve_hub

    folder = (home() / "hub" if root is None else root).absolute()
    tokens = {name: str(_token_file(folder, name)) for name in dict.fromkeys(user or ["me"])}

    def ready(endpoint: str) -> None:
        if as_json:
            print_json({"endpoint": endpoint, "root": str(folder), "tokens": tokens}, one_line=True)
        else:
            print_fields({"endpoint": endpoint, "root": folder} | {f"token of {who}": at for who, at in tokens.items()})
        say(f"Use it:  export HF_ENDPOINT={endpoint} HF_TOKEN=$(cat '{next(iter(tokens.values()))}')")
        say("Ctrl-C stops it; nothing is lost.")

    serve_hub(folder, host, port, allow_remote=allow_remote, ready=ready)
    say("Stopped.")


def find(
    query: Annotated[str | None, typer.Argument(metavar="QUERY", help="Words in the name of the repo.")] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="Patches for this base model, org/model.")
    ] = None,
    author: Annotated[str | None, typer.Option("--author", metavar="USER", help="Patches of this user.")] = None,
    limit: Annotated[
        int, typer.Option("--limit", parser=number(int, 1, 1000), metavar="N", help="At most so many.")
    ] = 100,
    endpoint: EndpointOption = None,
    token_file: TokenFileOption = None,
    as_json: AsJson = False,
) -> None:
    """Find patches, the newest first. What is listed is what their authors say."""
    from kedit_hub.hub.search import find as find_patches

    found = find_patches(base, query, author, limit=limit, endpoint=endpoint, token=token_for(endpoint, token_file))
    rows = [
        {**vars(one), "tags": list(one.tags), "last_modified": one.last_modified and one.last_modified.isoformat()}
        for one in found
    ]
    if as_json:
        print_json(rows)
    else:
        columns = ("repo_id", "base", "method", "last_modified", "downloads", "private")
        print_table(columns, [[row[name] for name in columns] for row in rows])


def _token_file(root: Path, user: str) -> Path:
    """The file beside the hub, readable by its owner alone, that holds a working token of `user`; made when needed."""
    from kedit_hub.hub.localhub import add_user
    from kedit_hub.hub.localhub.names import check_name
    from kedit_hub.hub.localhub.tokens import Tokens

    folder = root.with_name(f"{root.name}-tokens")
    file = folder / f"{check_name(user)}.token"
    if file.is_file():
        known = Tokens(root, {}).identify(file.read_text("ascii", "replace").strip())
        if known is not None and (known.name, known.role) == (user, "write"):
            return file
    token = add_user(root, user)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{user}.")  # mode 0600
    with os.fdopen(handle, "w", encoding="ascii") as out:
        out.write(token + "\n")
    os.replace(temporary, file)
    return file
