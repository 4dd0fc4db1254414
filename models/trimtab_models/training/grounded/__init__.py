"""Training of a language model with token-level rewards that are learned from preferences.

Preferences are of whole sequences; training needs rewards of tokens. A network of token rewards is
trained on rankings of the language model's own generations (objectives/plackett_luce.py); then the
language model is trained on its rewards. The two alternate, during the first half of the training
unless set otherwise, so that the rewards fit the present generations.

    settings.py    settings of a run             guidance.py   generations, rankings, rewards
    losses.py      REINFORCE and weighted MLE     turns.py      the alternation
    stopping.py    held-out evaluations
    job.py         from data to a language model, with saves that survive a kill

Source: Yang et al., "Preference-grounded Token-level Guidance for Language Model Fine-tuning",
Algorithms 1 and 2.
"""
