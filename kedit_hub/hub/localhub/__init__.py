"""A development hub: the part of the Hugging Face Hub protocol that sharing patches needs, in a folder on this machine.

Law: what a client was told is stored survives `kill -9`, and no string chosen by a user ever becomes a path.

    kedit hub serve --root ./hub                            # a process

    with LocalHub(tmp_path) as hub:                         # a thread, for tests
        token = hub.create_user("ada")
        HfApi(endpoint=hub.endpoint, token=token).create_repo("ada/patch")

Every file travels as a regular git blob inside the commit: no LFS, no Xet. Users, tokens, private repos, pull requests,
tags and stale-parent checks behave as on the Hub; organizations, gating, likes, download counts, webhooks are left out.
"""

from kedit_hub.hub.localhub.bounds import HubBounds
from kedit_hub.hub.localhub.server import DEFAULT_PORT, LocalHub, serve
from kedit_hub.hub.localhub.tokens import add_user

__all__ = ["DEFAULT_PORT", "HubBounds", "LocalHub", "add_user", "serve"]
