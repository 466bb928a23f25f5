"""SGLang: its layers behind our model seam (`backend`), and its stock server as prefill side (`transfer`).

The only package that imports sglang. `versions` and `shims` do not, so that everything may use them, also
where SGLang is not installed.
"""
