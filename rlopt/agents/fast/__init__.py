"""Learning steps that are written out, for agents with perceptrons: `fast=True` of DQN, TD3, DDPG and SAC, and `StackedAgents`.

A small network's update spends most of its time in Python, in the bookkeeping of autograd, and in beginning many short operations.
Here a step of S agents at once is one call of a function that numba has compiled (`numba_*.py`, for ReLU on the CPU), or for the
rest a few dozen calls of torch on stacks of networks (`mlp.py`, `dqn.py`, `td3.py`, `sac.py`). The parameters of an agent's network
are a row of one tensor. `learning.py` and `*_learning.py` choose between the two, and take over the agents' networks and
optimizers.
"""
