"""Ray actors that each keep one worker, such as an engine, on any machine of a cluster.

    pool, count = actors.pool("auto", partial(Sampler, "BASE"))
    pool.submit(actors.call, (work, task))
    done = actors.result(pool)  # work(worker, task)

The pool is Ray's own ActorPool. If an actor is killed, Ray starts it again, perhaps elsewhere, and
repeats its task. So `work` must give the same result twice, and must not leave half-written files.
"""

import os
import socket
from collections.abc import Callable
from typing import Any

from trimtab.errors import StartError, TrimtabError

TRIES = 3
"""How often an actor may be started again, and a task done again."""
NOT_BOUND = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""On a CPU, engines share a machine's cores: vLLM would bind all of them to the same ones."""


class Worker:
    """What runs in an actor: a worker that is built at its first task."""

    def __init__(self, build: Callable[[], Any]) -> None:
        self.build = build
        self.worker: Any = None

    def do(self, work: Callable[[Any, Any], Any], task: Any) -> Any:
        """work(worker, task)."""
        if self.worker is None:
            self.worker = self.build()
        return work(self.worker, task)


def call(actor: Any, job: tuple[Callable[[Any, Any], Any], Any]) -> Any:
    """How a job (work, task) is sent to an actor, for `ActorPool.submit`."""
    return actor.do.remote(*job)


def pool(
    address: str, build: Callable[[], Any], count: int | None = None, gpus: int = 1
) -> tuple[Any, int]:
    """A pool of actors, and their number.

    Args:
        address: of the cluster, as for `ray.init`; "local" starts one on this machine.
        build: makes the worker of an actor; it is pickled.
        count: the number of actors; default: one for each `gpus` GPUs of the cluster, or without
            any GPU one for each machine.
        gpus: GPUs of an actor, where the cluster has GPUs.

    Raises:
        StartError: Ray is not installed, no cluster answers, or it is too small.
    """
    try:
        import ray
        from ray.util import ActorPool
    except ImportError:
        raise StartError("--ray needs Ray: pip install 'trimtab[ray]'.") from None
    try:
        _connect(address)
        ray.init(
            None if address == "local" else address,
            log_to_driver=False,
            include_dashboard=False if address == "local" else None,
            configure_logging=False,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise StartError(f"no Ray cluster answers at {address}: {type(error).__name__}.") from None
    total = ray.cluster_resources()
    has_gpus = total.get("GPU", 0) > 0
    machines = sum(node["Alive"] for node in ray.nodes())
    count = count or (int(total["GPU"]) // gpus if has_gpus else machines)
    room = int(total["GPU"]) // gpus if has_gpus else int(total.get("CPU", 0))
    if not 0 < count <= room:
        raise StartError(
            f"the Ray cluster has room for {room} actors, not {count}; choose --ray-actors, or add "
            "machines."
        )
    environment = {} if has_gpus else {**NOT_BOUND, **_set(NOT_BOUND)}
    options = {
        "num_cpus": 1 if has_gpus else int(total["CPU"]) // count,
        "num_gpus": gpus if has_gpus else 0,
        "max_restarts": TRIES,
        "max_task_retries": TRIES,
        "runtime_env": {"env_vars": environment},
    }
    actor = ray.remote(Worker).options(**options)
    return ActorPool([actor.remote(build) for _ in range(count)]), count


def _connect(address: str) -> None:
    """Connect to HOST:PORT once: Ray itself tries for minutes.

    Raises:
        OSError: nothing answers there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def result(pool: Any) -> Any:
    """The next result of a pool, in the order in which tasks end.

    Raises:
        TrimtabError: what the work raised, or that its actors were killed too often.
    """
    from ray.exceptions import RayActorError, RayTaskError

    try:
        return pool.get_next_unordered()
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError:
        raise TrimtabError(
            f"an actor ended {TRIES + 1} times; look at Ray's logs, for example for lack of memory."
        ) from None


def _set(names: dict[str, str]) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ}
