"""Says at the end what was done to jobs, and how much of it was lost: the tests record each fault as a property."""

from collections import Counter
from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [
        report
        for kind in ("passed", "failed")
        for report in terminalreporter.stats.get(kind, ())
        if report.when == "call" and "tests/faults/" in report.nodeid
    ]
    faults = [fault for report in reports for fault in report.user_properties]
    if not faults:
        return
    terminalreporter.section("faults")
    for name, number in sorted(Counter(name for name, _ in faults).items()):
        did = Counter(what for each, what in faults if each == name)
        terminalreporter.line(
            f"{number:4d} {name}: {', '.join(f'{times} {what}' for what, times in did.most_common())}"
        )
    lost = sum(len(report.user_properties) for report in reports if report.failed)
    terminalreporter.line(f"{len(faults)} faults in {len(reports)} jobs; lost {lost}")
