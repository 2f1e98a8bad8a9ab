"""Atlas, the embedded default: a small world of real facts, two tiny models that know it, and edits to try on them.

    kedit_hub.demo.model_path("llama")     # a plain transformers folder
    kedit_hub.demo.edits("dev")            # counterfactual edits with probes; "test" is for reporting
    kedit_hub.demo.texts("profile")        # plain text of the world

Law: nothing here is fetched, and nothing here needs torch until a model is loaded or trained.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from kedit_hub.demo import requests, samples, world
from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError

if TYPE_CHECKING:
    from kedit_hub.base.profile import BaseProfile

MODELS = Path(__file__).parent / "models"
PROFILES = Path(__file__).parent / "profiles"
ARCHITECTURES = ("llama", "gpt2")


def model_path(architecture: str = "llama") -> Path:
    """The folder of a demo model: "llama" or "gpt2". Raises KeditError for any other name."""
    if architecture not in ARCHITECTURES:
        raise KeditError(f"There is no demo model {architecture!r}. Choose one of {', '.join(ARCHITECTURES)}.")
    return MODELS / architecture


def edits(split: str = "dev") -> list[Edit]:
    """The counterfactual edits of "dev" or "test", always the same ones. Raises KeditError for any other name."""
    return requests.requests(world.load(), split)


def texts(sample: str = "profile") -> list[str]:
    """Plain sentences of the world: "profile" for second moments, "drift" to measure damage; they share no text.

    The "drift" sample tells no fact that an edit of `edits` changes. Raises KeditError for any other name.
    """
    return samples.texts(world.load(), sample)


def profile(architecture: str = "llama") -> "BaseProfile | None":
    """The base profile measured for a demo model and shipped with it, or None where there is none yet."""
    from kedit_hub.base.profile import BaseProfile

    folder = PROFILES / architecture
    return BaseProfile.load(folder) if folder.is_dir() else None
