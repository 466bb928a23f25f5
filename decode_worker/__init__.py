"""The decode process: received prompt KV in, ranked leaves out. Owns beams and KV until the answer."""
