"""Pages of prompt KV: who has them, what is kept and shared, memory that two processes see."""
