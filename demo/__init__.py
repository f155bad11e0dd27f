"""The story that Pilotage exists for, on a real cluster, under load."""
