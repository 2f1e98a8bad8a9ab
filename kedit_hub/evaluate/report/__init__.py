"""THE REPORT: results files of strangers as pages a person can check. Law: every number shown is one of the runs' own, stands
under its protocol, and comes with how sure it is and what was left out; no text of a run is ever more than text.

    from kedit_hub.evaluate.report import write_report
    write_report(runs, "out")          # out/report.html, out/report.md, out/report.json
"""

from kedit_hub.evaluate.report.write import write_report

__all__ = ["write_report"]
