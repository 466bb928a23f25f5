"""KV on its way from one process to another: the protocol, and both ends of it on sockets."""
