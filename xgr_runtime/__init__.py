"""Shared contracts of the runtime: wire, configuration, catalog, model. Owned by no process."""
