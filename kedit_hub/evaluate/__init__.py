"""MEASURING: what an edit did, and what it broke. Law: nothing here knows which editor made what it measures, numbers
of two protocols never share a column, and every fact is asked again after the whole stack of edits.
"""

import sys
from types import ModuleType
from typing import Any


class _Evaluate(ModuleType):
    """The package is its own main function: `kedit_hub.evaluate(model, edits)` is `suites.evaluate`, and its modules stay reachable."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from kedit_hub.evaluate.suites import evaluate

        return evaluate(*args, **kwargs)


sys.modules[__name__].__class__ = _Evaluate
