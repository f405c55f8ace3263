"""Tests of the rollout page."""
