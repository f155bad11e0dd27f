"""The children of a ModelDeployment, one file a kind: plain manifests, rendered and never sent from here."""
