"""Rivals of guidance: the base itself tuned for a reward, by RL or DPO, and soups of such policies.

rl.py           on-policy RL, on one reward or on a weighted sum of several (as in Mo-PPO)
train.py        train a policy in a world's directory, by RL or DPO
soups.py        Rewarded Soups: the mean of the weights of policies, each tuned for one reward
divergence.py   KL from the base to a policy, exact at every step
"""

from trimtab_lab.rivals.divergence import divergence
from trimtab_lab.rivals.soups import soup
from trimtab_lab.rivals.train import half, train

__all__ = ["divergence", "half", "soup", "train"]
