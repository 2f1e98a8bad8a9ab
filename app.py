"""The Space: builds the page and launches it.

PORT=7860 python app.py                  # then open the address it prints; no network is needed
DEMO_HUB=folder PORT=7860 python app.py  # the same beside a development hub kept in that folder, to push to and pull from
KEDIT_TRUST=kedit.trust python app.py    # only patches that this trust policy lets in; it does not start without the file
KEDIT_BOARD=lab/board python app.py      # the leaderboard that is shown first
"""

import ctypes
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before Gradio is imported: nothing is reported anywhere

from kedit_hub import KeditError
from kedit_hub.hub.localhub import LocalHub
from space import demo_board, making, page
from space.state import Workshop, embedded_bases, hub_endpoint, sample_patches

ROOT = Path(__file__).resolve().parent


def steady_memory() -> None:
    """Large blocks go back to the system when they are freed (glibc): else the process grows with every stack that comes and goes."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 22)  # M_TRIM_THRESHOLD


def main() -> None:
    steady_memory()
    folder = os.environ.get("DEMO_HUB")
    with LocalHub(Path(folder)) if folder else nullcontext() as hub:
        if hub is not None:
            os.environ["KEDIT_HUB_ENDPOINT"], os.environ["HF_TOKEN"] = hub.endpoint, hub.create_user("me")
            print(f"* Development hub at {hub.endpoint}: patches are pushed as me/NAME and kept in {folder}")
        workshop = Workshop(
            embedded_bases(),
            sample_patches(ROOT / "patches"),
            endpoint=hub_endpoint(),
            board=os.environ.get("KEDIT_BOARD") or (demo_board.BOARD if hub is not None else None),
        )
        with measuring(hub, Path(f"{folder}-board")) if hub is not None else nullcontext():
            built = page.build(workshop)
            gc.freeze()  # what is here stays: collections that follow pass over it
            built.launch(
                server_name="0.0.0.0" if os.environ.get("SPACE_ID") else "127.0.0.1",
                server_port=int(os.environ.get("PORT", "7860")),
                mcp_server=True,
                max_file_size=making.MAX_FILE_BYTES,
                state_session_capacity=100,
                **page.look(),
            )


@contextmanager
def measuring(hub: LocalHub, folder: Path) -> Iterator[None]:
    """The leaderboard of the development hub comes to be beside the page, in a process of its own that ends with it."""
    tokens = {"DEMO_VERIFIER_TOKEN": hub.create_user(demo_board.VERIFIER)}
    process = subprocess.Popen(
        [sys.executable, "-m", demo_board.__name__, str(folder.absolute())], cwd=ROOT, env=os.environ | tokens
    )
    print(f"* Its leaderboard {demo_board.BOARD} is measured now, on Atlas, if it was not before: about a minute")
    try:
        yield
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    try:
        main()
    except KeditError as error:
        sys.exit(f"Error: {error}")
