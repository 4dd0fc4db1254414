"""A pytest plug-in: after the run, how many items of each letter of the scorecard passed."""

from collections import defaultdict

import pytest


class Tally:
    """Items by letter, wherever they ran."""

    def __init__(self) -> None:
        self.outcomes: dict[str, dict[str, bool]] = defaultdict(dict)
        """Of each letter: whether each test passed."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Have each test's reports tell its letter, if it has one."""
        for item in items:
            mark = item.get_closest_marker("scorecard")
            if mark is not None:
                item.user_properties.append(("scorecard", mark.kwargs["letter"]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once, whatever of its phases fails."""
        letter = dict(report.user_properties).get("scorecard")
        if letter is None:
            return
        outcomes = self.outcomes[letter]
        if report.skipped:
            outcomes.pop(report.nodeid, None)
        elif report.when == "setup" or report.failed:
            outcomes[report.nodeid] = report.passed

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """One line a letter."""
        for letter, outcomes in sorted(self.outcomes.items()):
            passed, ran = sum(outcomes.values()), len(outcomes)
            terminalreporter.write_line(f"scorecard {letter}: {passed} of {ran} items passed")


def pytest_configure(config: pytest.Config) -> None:
    """Begin to count."""
    config.pluginmanager.register(Tally())
