"""Learning steps whose gradients are written out, for agents with perceptrons: `fast=True` of DQN, TD3, DDPG and SAC.

A small network's update spends most of its time in Python and in the bookkeeping of autograd. Here the parameters of a network are
one tensor, forward and backward passes are a dozen products of matrices into memory that is used again, and Adam is one fused call.
All of it works on several networks of one shape at once (a leading dimension), which is how seeds are stacked.
"""
