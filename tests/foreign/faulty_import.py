NET = 1 / 0
