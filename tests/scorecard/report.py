"""A pytest plug-in: after the run, how many items of each letter of the scorecard passed."""

from collections import Counter

import pytest


class Tally:
    """Items by letter."""

    def __init__(self) -> None:
        self.letters: dict[str, str] = {}
        self.items: Counter[str] = Counter()
        self.failed: dict[str, set[str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Remember the letter of each test that has one."""
        for item in items:
            mark = item.get_closest_marker("scorecard")
            if mark is not None:
                self.letters[item.nodeid] = mark.kwargs["letter"]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once, whatever of its phases fails."""
        letter = self.letters.get(report.nodeid)
        if letter is None:
            return
        self.items[letter] += report.when == "setup" and not report.skipped
        if report.failed:
            self.failed.setdefault(letter, set()).add(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """One line a letter."""
        for letter, count in sorted(self.items.items()):
            passed = count - len(self.failed.get(letter, ()))
            terminalreporter.write_line(f"scorecard {letter}: {passed} of {count} items passed")


def pytest_configure(config: pytest.Config) -> None:
    """Begin to count."""
    config.pluginmanager.register(Tally())
