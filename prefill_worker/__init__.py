"""The prefill process: prompt batches in, prompt KV out. Owns that KV until the decode worker has it."""
