"""Bundles on the Hugging Face hub: `hf://OWNER/NAME` is downloaded, `push` uploads.

Only `name` is imported unless a bundle is named so: the hub's client is the extra `hub`.
"""
