"""A model, a loss and data: how they are read, averaged and moved, and left as they came."""
