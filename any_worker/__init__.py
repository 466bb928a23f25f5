"""A worker without a role: warmed for both, it waits and then becomes a prefill or a decode worker."""
