"""A stand-in for Ray: actors of this process, whose calls run when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    pass


class ActorDiedError(RayError):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__(f"a traceback\nof {cause}")
        self.cause = cause


class Ray:
    """What a pool uses of Ray.

    Args:
        worker: Returns what stands for the n-th actor, from 0.

    Attributes:
        started: Number of actors.
        cancelled: Number of calls that were cancelled.
        living: The actors that were not killed.
    """

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, worker: Callable[[int], Any]) -> None:
        self.started, self.cancelled = 0, 0
        self.living: list[Actor] = []
        self._worker, self._turn = worker, 0

    def remote(self, _: type) -> SimpleNamespace:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._start))

    def _start(self) -> Actor:
        actor = Actor(self._worker(self.started))
        self.started += 1
        self.living.append(actor)
        return actor

    def wait(self, calls: Sequence[Call], timeout: float) -> tuple[list[Call], list[Call]]:
        self._turn += 1  # results come in no particular order
        call = calls[self._turn % len(calls)]
        return [call], [other for other in calls if other is not call]

    def get(self, call: Call) -> Any:
        return call()

    def kill(self, actor: Actor) -> None:
        if actor in self.living:
            self.living.remove(actor)

    def cancel(self, call: Call) -> None:
        self.cancelled += 1


class Actor:
    def __init__(self, worker: Any) -> None:
        self._worker, self._dead = worker, False

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *given: lambda: self._run(name, given))

    def _run(self, name: str, given: tuple[Any, ...]) -> Any:
        if self._dead:
            raise ActorDiedError("the actor died\nmore lines")
        try:
            return getattr(self._worker, name)(*given)
        except RayError:
            self._dead = True
            raise
        except Exception as error:
            raise RayTaskError(error) from error


Call = Callable[[], Any]
