"""What a study is written with: configurations, claims, stages, tuning, and the checks of what it declares. Needs no torch."""
