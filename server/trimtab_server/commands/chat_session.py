"""A conversation with a server: its turns, its guidance, and the commands that change them."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx

from trimtab_server import client, settings
from trimtab_server.commands.generate import value
from trimtab_server.usage import closest

HELP = """\
/scorer            list the scorers and their weights
/scorer warm=1     steer with these scorers, NAME=WEIGHT each; 0 leaves one out
/beta 4            set the strength; 0 is the base model
/set top_p 0.9     set any field of POST /generate; /set top_p alone unsets it
/record            show the guidance of the last answer
/reset             forget the conversation
/quit              end the session
"""


class Quit(Exception):
    """The session ends."""


class Session:
    """One conversation.

    Args:
        http: a client of the server.
        fields: of POST /generate, besides the messages.
        system: the system message.
    """

    def __init__(self, http: httpx.Client, fields: Mapping[str, Any], system: str | None = None):
        self.http = http
        self.fields = dict(fields)
        self.first = [] if system is None else [{"role": "system", "content": system}]
        self.turns = list(self.first)
        self.record: Mapping[str, Any] | None = None
        self.commands: dict[str, Callable[[str], str]] = {
            "/help": lambda _: HELP,
            "/scorer": self._scorer,
            "/beta": self._beta,
            "/set": self._set,
            "/record": self._record,
            "/reset": self._reset,
            "/quit": self._quit,
        }

    def greeting(self) -> str:
        """One line about the server's scorers."""
        names = ", ".join(one["id"] for one in self._served()) or "none"
        return f"Scorers of this server: {names}."

    def say(self, line: str) -> Iterator[str]:
        """The text to print for a line: a command's reply, or the model's answer as it arrives.

        Raises:
            Quit: the session ends.
            Refused: the server refused the turn, which is forgotten.
            ValueError: a command cannot be read.
        """
        if not line:
            return
        if line.startswith("/"):
            name, _, rest = line.partition(" ")
            if name not in self.commands:
                meant = closest(name, self.commands)
                end = f"did you mean {meant}?" if meant else "see /help."
                raise ValueError(f"there is no command {name[:40]}; {end}")
            yield self.commands[name](rest.strip())
            return
        yield from self._turn(line)

    def _turn(self, line: str) -> Iterator[str]:
        turns = [*self.turns, {"role": "user", "content": line}]
        answer = ""
        for part in client.parts(self.http, {**self.fields, "messages": turns, "n": 1}):
            answer += part["text"]
            yield part["text"]
            if part["finish_reason"] is not None:
                self.record = part.get("guidance")
                yield "\n" + client.summary(self.record)
        self.turns = [*turns, {"role": "assistant", "content": answer}]

    def _served(self) -> list[dict[str, Any]]:
        answer = self.http.get("/v1/scorers")
        client.check(answer)
        served: list[dict[str, Any]] = answer.json()["data"]
        return served

    def _scorer(self, rest: str) -> str:
        if rest:
            try:
                weights = settings.weights(rest)
            except ValueError:
                raise ValueError("weights are numbers: /scorer NAME=WEIGHT.") from None
            self._known(weights)
            chosen = {**self.fields.get("scorers", {}), **weights}
            self.fields["scorers"] = {name: w for name, w in chosen.items() if w != 0}
            if not self.fields["scorers"]:
                del self.fields["scorers"]
        own = self.fields.get("scorers")
        lines = []
        for one in self._served():
            weight = one["default_weight"] if own is None else own.get(one["id"], 0)
            health = "" if one["healthy"] else ", not healthy"
            lines.append(f"{one['id']}={weight:g} ({one['family']}{health})\n")
        return "".join(lines)

    def _known(self, weights: Mapping[str, float]) -> None:
        names = [one["id"] for one in self._served()]
        for name in weights:
            if name not in names:
                meant = closest(name, names)
                end = f"did you mean {meant}?" if meant else f"there are {', '.join(names)}."
                raise ValueError(f"this server has no scorer {name[:64]}; {end}")

    def _beta(self, rest: str) -> str:
        try:
            self.fields["beta"] = float(rest)
        except ValueError:
            raise ValueError("say the strength as a number: /beta 4.") from None
        self.fields.pop("kl_budget", None)
        return f"beta={self.fields['beta']:g}\n"

    def _set(self, rest: str) -> str:
        name, _, text = rest.partition(" ")
        if not name:
            return json.dumps(self.fields) + "\n"
        if text:
            self.fields[name] = value(text.strip())
        else:
            self.fields.pop(name, None)
        return json.dumps(self.fields) + "\n"

    def _record(self, _: str) -> str:
        if self.record is None:
            return "There is no answer with a record yet.\n"
        return json.dumps(self.record, indent=2, ensure_ascii=False) + "\n"

    def _reset(self, _: str) -> str:
        self.turns, self.record = list(self.first), None
        return "The conversation is forgotten.\n"

    def _quit(self, _: str) -> str:
        raise Quit
