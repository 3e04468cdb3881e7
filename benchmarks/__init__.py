"""Speed and memory of this project beside its peers; README.md says how to run and read them."""
