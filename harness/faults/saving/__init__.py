"""Adapters that are saved other than they are in memory."""
