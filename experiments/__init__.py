"""Published claims about batch size, sharpness and generalization, as programs: one study per file."""
