"""Atlas, the embedded default: a small world of real facts, two tiny models that know it, and edits to try on them.

    kedit_hub.demo.model_path("llama")     # a plain transformers folder
    kedit_hub.demo.edits("dev")            # counterfactual edits with probes; "test" is for reporting
    kedit_hub.demo.texts("profile")        # plain text of the world

Law: nothing here is fetched, and nothing here needs torch until a model is loaded or trained.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedit_hub.demo import families, requests, samples, world
from kedit_hub.edits import Edit
from kedit_hub.errors import KeditError

if TYPE_CHECKING:
    from kedit_hub.base.profile import BaseProfile

MODELS = Path(__file__).parent / "models"
PROFILES = Path(__file__).parent / "profiles"
EDITORS = Path(__file__).parent / "editors"
ARCHITECTURES = ("llama", "gpt2")


def model_path(architecture: str = "llama") -> Path:
    """The folder of a demo model: "llama" or "gpt2". Raises KeditError for any other name."""
    if architecture not in ARCHITECTURES:
        raise KeditError(f"There is no demo model {architecture!r}. Choose one of {', '.join(ARCHITECTURES)}.")
    return MODELS / architecture


def edits(split: str = "dev") -> list[Edit]:
    """The counterfactual edits of "dev" or "test", always the same ones. Raises KeditError for any other name."""
    return requests.requests(world.load(), split)


def training_edits(per_fact: int = 4) -> list[Edit]:
    """Edits to train editors on: of every fact whose subject no "test" edit has, `per_fact` of each, with other new answers. What is said
    of the subjects of "test" is in none of their probes."""
    return requests.lessons(world.load(), per_fact)


def task_records(split: str = "train") -> list[dict[str, Any]]:
    """Records of several tasks, each with its `type`, for InstructEdit: "train" or "test", which alone has questions and shares no subject
    with it. `kedit_hub.records.read.read_records` reads them. Raises KeditError for any other name."""
    return families.families(world.load(), split)


def editor_path(method: str, architecture: str | None = "llama") -> Path | None:
    """The folder of the trained editor of this method that comes with a demo model, or None."""
    folder = EDITORS / f"{architecture}-{method}"
    return folder if folder.is_dir() else None


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
