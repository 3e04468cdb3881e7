"""Plugins: which are installed, which a run takes, whether they keep the contract, calling them."""
