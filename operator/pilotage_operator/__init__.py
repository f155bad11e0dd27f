"""Pilotage's operator: one ModelDeployment in, pods, routes, rules and safe rollouts out."""
