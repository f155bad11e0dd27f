"""What users write: the ModelDeployment, one file a section."""
