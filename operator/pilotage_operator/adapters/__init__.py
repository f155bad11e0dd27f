"""The world outside: Kubernetes and Prometheus. Errors are translated here; a 404 is None."""
