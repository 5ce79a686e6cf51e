"""How far the loss rises around the weights: at worst, on average, relative to their scale."""
