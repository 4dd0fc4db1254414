"""Run the settings of methods, each method at rising scaled β, here or in Ray actors."""

from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from tqdm import tqdm

from trimtab.params import MAX_BETA, MAX_WEIGHT
from trimtab_lab import actors
from trimtab_lab.arena.bench import Bench
from trimtab_lab.arena.frontier import Floats
from trimtab_lab.arena.method import Method
from trimtab_lab.arena.runs import Run, find, save

Ladder: TypeAlias = Generator[float, Run, None]


class Runner(Protocol):
    """Where settings run."""

    count: int
    """The number of settings that run at the same time."""

    def submit(self, index: int, method: Method, scaled_beta: float) -> None:
        """Start a setting; `index` comes back with its run."""

    def result(self) -> tuple[int, Run]:
        """The next run to end."""

    def base_samples(self) -> dict[str, Floats]:
        """See `Bench.base_samples`."""


class Here:
    """Runs settings on a bench of this process, one after the other."""

    count = 1

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._setting: tuple[int, Method, float] | None = None

    def submit(self, index: int, method: Method, scaled_beta: float) -> None:
        """Keep the setting until `result`."""
        self._setting = index, method, scaled_beta

    def result(self) -> tuple[int, Run]:
        """Run the setting."""
        assert self._setting is not None
        return _run(self.bench, self._setting)

    def base_samples(self) -> dict[str, Floats]:
        """See `Bench.base_samples`."""
        return self.bench.base_samples()


class Actors:
    """Runs settings in the actors of a Ray cluster, each with a bench of its own.

    Args:
        address, count, gpus: see `trimtab_lab.actors.pool`.
        build: makes a bench. Its directory must be on a file system that all machines see.
    """

    def __init__(
        self, address: str, build: Callable[[], Bench], count: int | None = None, gpus: int = 1
    ) -> None:
        self._pool, self.count = actors.pool(address, build, count, gpus)

    def submit(self, index: int, method: Method, scaled_beta: float) -> None:
        """Send a setting to an actor."""
        self._pool.submit(actors.call, (_run, (index, method, scaled_beta)))

    def result(self) -> tuple[int, Run]:
        """The next run to end, in any actor."""
        done: tuple[int, Run] = actors.result(self._pool)
        return done

    def base_samples(self) -> dict[str, Floats]:
        """See `Bench.base_samples`."""
        self._pool.submit(actors.call, (_base_samples, None))
        samples: dict[str, Floats] = actors.result(self._pool)
        return samples


def climb(
    bench: Bench, methods: Iterable[Method], folder: Path, runner: Runner | None = None
) -> list[Run]:
    """Run each method at rising scaled β, until its KL exceeds `method.stop`; see `steered`.

    runner: where the settings run; default: on the bench.
    """
    runner = runner or Here(bench)
    methods = list(methods)
    runs: list[list[Run]] = [[] for _ in methods]
    active: dict[int, Ladder] = {}
    settings = sum(len(_scaled_betas(bench, method)) for method in methods)
    with tqdm(total=settings, unit="setting") as progress:

        def advance(index: int, run: Run | None) -> None:
            """Submit the next setting of a method, if it has one."""
            try:
                scaled_beta = active[index].send(run)  # type: ignore[arg-type]
            except StopIteration:
                del active[index]
                return
            progress.set_description(methods[index].name)
            runner.submit(index, methods[index], scaled_beta)

        for index, method in enumerate(methods):
            active[index] = _ladder(bench, method, folder, runs[index], progress.update)
            advance(index, None)
            while len(active) >= runner.count:
                advance(*runner.result())
        while active:
            advance(*runner.result())
    return [run for group in runs for run in group]


def _ladder(
    bench: Bench, method: Method, folder: Path, runs: list[Run], tick: Callable[[int], Any]
) -> Ladder:
    """The scaled β of a method that have no file yet; each is sent its run, which is saved."""
    ladder = _scaled_betas(bench, method)
    for done, scaled_beta in enumerate(ladder):
        if abs(bench.beta(method, scaled_beta)) > MAX_BETA * MAX_WEIGHT:
            tick(1)
            continue
        run = find(folder, method.name, scaled_beta, bench.settings(method, scaled_beta))
        if run is None:
            run = yield scaled_beta
            save(folder, run)
        runs.append(run)
        if steered(bench, run) > method.stop and method.temperature > 0:
            tick(len(ladder) - done)
            return
        tick(1)


def _scaled_betas(bench: Bench, method: Method) -> tuple[float, ...]:
    return tuple(method.scaled_betas or bench.scale.ladder)


def steered(bench: Bench, run: Run) -> float:
    """The nats of a run that end its method's ladder: its mean KL.

    On a real base a cut tail costs more than any method may spend, before any steering, so there it
    does not count.
    """
    tail = run.spent_on_tail.mean() if bench.task.world.real else 0.0
    return float(run.spent.mean() - tail)


def _run(bench: Bench, setting: tuple[int, Method, float]) -> tuple[int, Run]:
    index, method, scaled_beta = setting
    return index, bench.run(method, scaled_beta)


def _base_samples(bench: Bench, _: None) -> dict[str, Floats]:
    return bench.base_samples()
