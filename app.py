"""The Space: builds the page and launches it.

PORT=7860 python app.py      # then open the address it prints; no network is needed
"""

import os
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before Gradio is imported: nothing is reported anywhere

from space import page, theme
from space.state import Workshop, embedded_bases, hub_endpoint, sample_patches

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    workshop = Workshop(embedded_bases(), sample_patches(here / "patches"), endpoint=hub_endpoint())
    page.build(workshop).launch(
        server_name="0.0.0.0" if os.environ.get("SPACE_ID") else "127.0.0.1",
        server_port=int(os.environ.get("PORT", "7860")),
        theme=theme.theme(),
        css_paths=theme.CSS,
        ssr_mode=False,
        footer_links=["api", "settings"],
        state_session_capacity=500,
    )
