"""Two example plugins for qinfer: a quant scheme and an observer."""
