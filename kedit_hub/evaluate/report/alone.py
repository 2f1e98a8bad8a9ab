"""A plot of the report as a file of its own. Law: still one element without a script or a request; its style is in it."""

import re
from importlib.resources import files


def standing_alone(svg: str) -> str:
    """With its namespace and the rules of the report's style sheet."""
    css = files("kedit_hub.evaluate.report").joinpath("report.css").read_text("utf-8")
    rules = [re.findall(r"^:root \{.*?^\}", css, re.S | re.M)[0], *re.findall(r"^svg .*$", css, re.M)]
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="760" font-family="sans-serif" '
    return re.sub(r"^<svg ", head, svg).replace("><title", f"><style>{' '.join(rules)}</style><title", 1) + "\n"
