"""Comparisons of reinforcement learning methods in environments: methods x environments x seeds."""
