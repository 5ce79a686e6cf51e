"""Understand what was measured: reads records and study declarations, never trains and never imports torch."""
