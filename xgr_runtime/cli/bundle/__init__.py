"""`xgr catalog import`: catalogs from TorchEasyRec's versioned SID bundles, and what later ones add."""
