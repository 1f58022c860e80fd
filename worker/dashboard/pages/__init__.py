"""The pages, a module each: what a page reads, and what its forms do.

Only `worker.dashboard.app` imports them.
"""
