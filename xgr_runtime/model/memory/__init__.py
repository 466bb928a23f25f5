"""KV and weights as tensors, on a device or shared between processes."""
