"""OpenAI's dialect: /v1/completions and /v1/chat/completions, each a body -> bodies of /generate and back."""
