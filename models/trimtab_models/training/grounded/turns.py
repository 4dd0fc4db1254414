"""The alternation of language model and token rewards; the step alone seeds all sampling."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from trimtab_models.data.derive import split
from trimtab_models.generation import generate
from trimtab_models.rows import Rollout, Rows, pad
from trimtab_models.training.grounded.guidance import Judge, TokenRewards, rank
from trimtab_models.training.grounded.losses import reinforce, weighted_mle
from trimtab_models.training.grounded.settings import GroundedConfig
from trimtab_models.training.grounded.stopping import Stopper

StateDict = dict[str, Any]


class Turns:
    """The two networks and their alternating training.

    Args:
        config: the run's settings; paths in it are ignored.
        model: the language model, trained in place.
        token_rewards: the network of token rewards, trained in place.
        examples: prompts with supervised completions (grounded-reinforce ignores these).
        judge: ranks generations.
        eos, pad_id: the tokenizer's.
    """

    def __init__(
        self,
        config: GroundedConfig,
        model: Any,
        token_rewards: TokenRewards,
        examples: Sequence[Rollout],
        judge: Judge,
        *,
        eos: int,
        pad_id: int,
    ) -> None:
        self.config, self.model, self.token_rewards = config, model, token_rewards
        self.examples, self.judge = examples, judge
        self.eos, self.pad_id = eos, pad_id
        self.optimiser = torch.optim.AdamW(
            model.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self.held_out: Sequence[Rollout] = ()
        self.stopper: Stopper | None = None
        if config.stopping is not None:
            self.examples, self.held_out = split(
                list(examples), config.stopping.validation, config.seed
            )
            self.stopper = Stopper(config.stopping, model, self.optimiser)
        self.step = 0
        self.log: list[dict[str, float]] = []

    def run(self, save: Callable[["Turns"], None] = lambda turns: None) -> None:
        """Run all remaining turns, and call `save` after each."""
        config = self.config
        bar = tqdm(total=config.steps, initial=self.step, desc=config.objective, unit="step")
        with bar:
            while self.step < config.steps and not self.ended:
                entry: dict[str, float] = {}
                if config.estimates(self.step):
                    entry = self.estimate()
                losses = []
                for _ in range(min(config.period, config.steps - self.step)):
                    losses.append(self._update())
                    self.step += 1
                    bar.update()
                    if self.stopper and config.evaluates(self.step):
                        entry["held_out_reward"] = self.evaluate(self.stopper)
                        if self.ended:
                            break
                entry |= {"step": self.step, "loss": sum(losses) / len(losses)}
                bar.set_postfix({key: f"{value:.3f}" for key, value in entry.items()})
                self.log.append(entry)
                save(self)
        if self.stopper:
            self.stopper.keep_best()
        self.model.eval()

    @property
    def ended(self) -> bool:
        """Whether held-out prompts have ended the training before its last step."""
        return self.stopper is not None and self.stopper.ended

    def evaluate(self, stopper: Stopper) -> float:
        """The mean reward of one generation for each held-out prompt."""
        torch.manual_seed(self.config.seed)  # the same draws at every evaluation
        values = self.judge(self._generate(self.held_out))
        mean = sum(values) / len(values)
        stopper.see(-mean)
        return mean

    def estimate(self) -> dict[str, float]:
        """Train the token rewards on rankings of new generations of the language model."""
        config = self.config
        examples = self._sample("rankings", config.rankings)
        generations = self._generate([e for e in examples for _ in range(config.k)])
        values = self.judge(generations)
        labelled = [
            one._replace(label=value) for one, value in zip(generations, values, strict=True)
        ]
        seed = f"{config.seed} {self.step}"
        loss = self.token_rewards.learn(rank(labelled, config.k, seed), config, seed)
        return {"reward": sum(values) / len(values), "ranking_loss": loss}

    def _sample(self, what: str, n: int) -> list[Rollout]:
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)
        rng = random.Random(f"{self.config.seed} {self.step} {what}")
        return rng.sample(list(self.examples), min(n, len(self.examples)))

    def _generate(self, examples: Sequence[Rollout]) -> list[Rollout]:
        completions = generate(
            self.model,
            [example.prompt for example in examples],
            eos=self.eos,
            pad_id=self.pad_id,
            most=self.config.max_new_tokens,
        )
        # A generation does not inherit the label and guidance of the example's own answer.
        return [
            Rollout(example.prompt, ids, 0.0)
            for example, ids in zip(examples, completions, strict=True)
        ]

    def _update(self) -> float:
        items = self._sample("batch", self.config.batch_size)
        if self.config.objective == "grounded-reinforce":
            items = self._generate(items)
        rows = Rows(*(part.to(self.model.device) for part in pad(items, self.pad_id)))
        self.model.train()
        logits = self.model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
        loss = self._loss(logits, rows, self.token_rewards(rows))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return loss.item()

    def _loss(self, logits: Tensor, rows: Rows, rewards: Tensor) -> Tensor:
        if self.config.objective == "grounded-reinforce":
            return reinforce(logits, rows, rewards, self.config.alpha)
        return weighted_mle(logits, rows, rewards)

    def state(self) -> StateDict:
        """Everything that the next turn depends on."""
        return {
            "step": self.step,
            "log": self.log,
            "model": self.model.state_dict(),
            "token rewards": self.token_rewards.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "stopper": self.stopper.state() if self.stopper else None,
        }

    def restore(self, state: StateDict) -> None:
        """Continue from a `state`."""
        self.step, self.log = state["step"], state["log"]
        self.model.load_state_dict(state["model"])
        self.token_rewards.model.load_state_dict(state["token rewards"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.stopper:
            self.stopper.restore(state["stopper"])
