"""The machinery behind the studies: configurations, planning, training, the store."""
