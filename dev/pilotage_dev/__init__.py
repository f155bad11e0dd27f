"""The local stack: a whole Kubernetes of real parts on one machine, for those who develop Pilotage."""
