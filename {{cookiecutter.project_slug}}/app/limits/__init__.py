"""Rate limits, quotas and address lists."""
