"""The loss on lines, curves and planes through weight space."""
