"""SGLang as the model layer; the only package that imports sglang, and only inside functions or modules that
`load_backend` loads on request, so that everything else runs where SGLang is not installed."""
