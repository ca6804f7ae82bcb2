"""Time to quality, against everybody: `python -m benchmarks.speedrun`, see benchmarks/SPEEDRUN.md."""
