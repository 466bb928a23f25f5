"""A deployment of devices that are not here, played event by event: which mix of them holds a promise.

Plain Python and no process: who is admitted, which prompts share a forward and which searches a step is
decided by the code of router and workers themselves.
"""
