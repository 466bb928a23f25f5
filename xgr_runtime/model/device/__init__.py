"""Streams, graphs and buckets of a GPU."""
