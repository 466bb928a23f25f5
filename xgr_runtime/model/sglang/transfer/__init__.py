"""The KV transfer backend `xgr_zmq`: a stock SGLang server in prefill mode serves our decode workers.

Everything here runs in SGLang's scheduler process and thread. SGLang decides which prompts run and polls each
transfer once per turn; that poll is when messages come in and KV leaves.
"""
