"""What a prefill worker runs its prompts on: a CPU, or captured buckets on a GPU."""
