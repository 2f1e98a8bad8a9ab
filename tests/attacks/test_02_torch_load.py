"""2 · torch.load, with weights_only=True too (GHSA-53q9-r3pm-6pq6, CVE-2025-62164): the calls that can run code from a file
do not occur in what ships, and the check that says so sees them where they do.
"""

import ast

import pytest

from tests.attacks.lint import COMPUTED, ROOT, faults, sources

HOSTILE = [
    "import torch; torch.load('x')",
    "import torch; torch.load('x', weights_only=True)",
    "import torch as t; t.serialization.torch.load('x')",
    "from torch import load",
    "load('x', weights_only=False)",
    "torch.jit.load('x')",
    "torch.package.PackageImporter('x')",
    "torch.hub.load('a/b', 'c')",
    "import pickle",
    "import pickle as p",
    "from _pickle import loads",
    "import dill, cloudpickle",
    "from joblib import load",
    "import shelve",
    "import marshal",
    "import numpy as np; np.load('x')",
    "numpy.load('x', allow_pickle=True)",
    "pandas.read_pickle('x')",
    "yaml.load(text)",
    "yaml.load(text, Loader=yaml.Loader)",
    "yaml.unsafe_load(text)",
    "yaml.full_load(text)",
    "eval(text)",
    "exec(text)",
    "compile(text, 'x', 'exec')",
    "__import__(name)",
    "os.system('x')",
    "subprocess.run('x', shell=True)",
    "model.save_pretrained('x', safe_serialization=False)",
]


def test_no_source_runs_code_from_a_file():
    found = {str(path.relative_to(ROOT)): faults(ast.parse(path.read_text("utf-8"))) for path in sources()}
    assert [(name, fault) for name, told in found.items() for fault in told if not fault.endswith(COMPUTED)] == []


@pytest.mark.parametrize("source", HOSTILE)
def test_the_check_sees(source):
    assert faults(ast.parse(source)), source


@pytest.mark.parametrize(
    "source",
    [
        "import safetensors.torch; safetensors.torch.load(data)",
        "yaml.safe_load(text)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "model.eval()",
        "getattr(model, 'config', None)",
        "AutoConfig.from_pretrained(name, trust_remote_code=False)",
    ],
)
def test_the_check_does_not_cry_wolf(source):
    assert faults(ast.parse(source)) == []


def test_everything_that_ships_is_looked_at():
    names = {str(path.relative_to(ROOT)) for path in sources()}
    assert {"app.py", "kedit_hub/api.py", "kedit_hub/patch/safefile.py", "space/page.py"} <= names
