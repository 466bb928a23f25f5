"""The router process: HTTP in front, workers behind. Owns request ids, deadlines, pairing and retries."""
